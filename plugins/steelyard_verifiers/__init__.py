"""Verifiers: what checks a completion against a reference. Hooks only; README.md describes each."""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, VerifierSpec


@hookimpl
def steelyard_verifiers() -> Iterator[VerifierSpec]:
    yield VerifierSpec(
        "exact",
        impl=LazyRef("steelyard_verifiers.exact:Exact"),
        config=LazyRef("steelyard_verifiers.config:ExactConfig"),
        examples=LazyRef("steelyard_verifiers.examples:EXACT"),
        isolation="inline",
        summary="the answer is the reference, character by character, after declared clean-up",
    )
    yield VerifierSpec(
        "number",
        impl=LazyRef("steelyard_verifiers.number:Number"),
        config=LazyRef("steelyard_verifiers.config:NumberConfig"),
        examples=LazyRef("steelyard_verifiers.examples:NUMBER"),
        isolation="inline",
        summary="the final number equals the reference, as exact fractions",
    )
    yield VerifierSpec(
        "gsm8k",
        impl=LazyRef("steelyard_verifiers.gsm8k:Gsm8k"),
        config=LazyRef("steelyard_verifiers.config:Gsm8kConfig"),
        examples=LazyRef("steelyard_verifiers.examples:GSM8K"),
        isolation="inline",
        summary="the last number is the reference's, as GSM8K is graded, with its sign",
    )
    yield VerifierSpec(
        "choice",
        impl=LazyRef("steelyard_verifiers.choice:Choice"),
        config=LazyRef("steelyard_verifiers.config:ChoiceConfig"),
        examples=LazyRef("steelyard_verifiers.examples:CHOICE"),
        isolation="inline",
        summary="the option it settles on, by letter or by text",
    )
    yield VerifierSpec(
        "regex",
        impl=LazyRef("steelyard_verifiers.regex:Regex"),
        config=LazyRef("steelyard_verifiers.config:RegexConfig"),
        examples=LazyRef("steelyard_verifiers.examples:REGEX"),
        isolation="process",
        timeout_s=5.0,
        summary="a regular expression finds it, or finds the reference in it",
    )
    yield VerifierSpec(
        "json_schema",
        impl=LazyRef("steelyard_verifiers.json_schema:JsonSchema"),
        config=LazyRef("steelyard_verifiers.config:JsonSchemaConfig"),
        examples=LazyRef("steelyard_verifiers.examples:JSON_SCHEMA"),
        isolation="process",
        timeout_s=5.0,
        summary="it is JSON that a schema allows",
    )
    yield VerifierSpec(
        "format",
        impl=LazyRef("steelyard_verifiers.format:Format"),
        config=LazyRef("steelyard_verifiers.config:FormatConfig"),
        examples=LazyRef("steelyard_verifiers.examples:FORMAT"),
        isolation="inline",
        summary="its thinking and its answer stand where they should, once and in order",
    )
    yield VerifierSpec(
        "math",
        impl=LazyRef("steelyard_verifiers.math.verifier:Math"),
        config=LazyRef("steelyard_verifiers.math.config:MathConfig"),
        examples=LazyRef("steelyard_verifiers.math.examples:MATH"),
        isolation="process",
        timeout_s=5.0,
        summary="its final answer equals the reference as mathematics: numbers, sets, intervals, matrices, expressions",
    )
    yield VerifierSpec(
        "ifeval",
        impl=LazyRef("steelyard_verifiers.ifeval.verifier:IfEval"),
        config=LazyRef("steelyard_verifiers.ifeval.config:IfEvalConfig"),
        examples=LazyRef("steelyard_verifiers.ifeval.examples:EXAMPLES"),
        isolation="process",
        timeout_s=10.0,
        summary="it follows verifiable instructions: the 25 types of IFEval, strict or loose",
    )
    yield VerifierSpec(
        "ifbench",
        impl=LazyRef("steelyard_verifiers.ifbench.verifier:IfBench"),
        config=LazyRef("steelyard_verifiers.ifbench.config:IfBenchConfig"),
        examples=LazyRef("steelyard_verifiers.ifbench.examples:EXAMPLES"),
        isolation="process",
        timeout_s=10.0,
        summary="it follows verifiable instructions: the 58 types of IFBench beside those of IFEval, strict or loose",
    )
    yield VerifierSpec(
        "code",
        impl=LazyRef("steelyard_verifiers.code.verifier:Code"),
        config=LazyRef("steelyard_verifiers.code.config:CodeConfig"),
        examples=LazyRef("steelyard_verifiers.code.examples:CODE"),
        isolation="sandbox",
        needs=("base",),
        summary="its Python program passes the tests, in a sandbox that never sees what they expect",
    )
    yield VerifierSpec(
        "judge",
        impl=LazyRef("steelyard_verifiers.judge.verifier:Judge"),
        config=LazyRef("steelyard_verifiers.judge.config:JudgeConfig"),
        isolation="inline",
        needs=("engine", "base"),
        summary="a language model's opinion, against a reference answer or a rubric",
    )
    yield VerifierSpec(
        "pairwise",
        impl=LazyRef("steelyard_verifiers.judge.pairwise:Pairwise"),
        config=LazyRef("steelyard_verifiers.judge.config:PairwiseConfig"),
        isolation="inline",
        needs=("engine", "base"),
        summary="which of two answers a language model prefers, weighted by its probabilities",
    )
    yield VerifierSpec(
        "wildguard",
        impl=LazyRef("steelyard_verifiers.judge.wildguard:WildGuard"),
        config=LazyRef("steelyard_verifiers.judge.config:WildGuardConfig"),
        isolation="inline",
        needs=("engine", "base"),
        summary="the WildGuard classifier's labels: a refusal, an answer, nothing harmful",
    )
    yield VerifierSpec(
        "reward_model",
        impl=LazyRef("steelyard_verifiers.judge.reward_model:RewardModel"),
        config=LazyRef("steelyard_verifiers.judge.config:RewardModelConfig"),
        isolation="inline",
        needs=("base",),
        model_option="model",
        summary="the score of a sequence classifier",
    )
    yield VerifierSpec(
        "all_of",
        impl=LazyRef("steelyard_verifiers.combining:AllOf"),
        config=LazyRef("steelyard_verifiers.config:AllOfConfig"),
        examples=LazyRef("steelyard_verifiers.examples:ALL_OF"),
        isolation="inline",
        needs=("parts",),
        summary="every one of several verifiers says correct",
    )
    yield VerifierSpec(
        "any_of",
        impl=LazyRef("steelyard_verifiers.combining:AnyOf"),
        config=LazyRef("steelyard_verifiers.config:AnyOfConfig"),
        examples=LazyRef("steelyard_verifiers.examples:ANY_OF"),
        isolation="inline",
        needs=("parts",),
        summary="at least one of several verifiers says correct",
    )
    yield VerifierSpec(
        "weighted",
        impl=LazyRef("steelyard_verifiers.combining:Weighted"),
        config=LazyRef("steelyard_verifiers.config:WeightedConfig"),
        examples=LazyRef("steelyard_verifiers.examples:WEIGHTED"),
        isolation="inline",
        needs=("parts",),
        summary="the weighted mean of several verifiers' scores",
    )
