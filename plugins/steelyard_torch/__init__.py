"""The torch toolkit that training stages and engines share: functions, no trainer class. README.md is its manual.

It contributes no hook. Import the module you need, for example ``from steelyard_torch.models import load_model``; nothing heavy is
imported here, so that finding plugins stays free of torch.
"""
