"""The suite as a third party meets it."""

import subprocess
import sys

import pytest

from secfl.crypto.plain import Plain
from secfl.testing.conformance import (
    CHECKS,
    Capabilities,
    Dropouts,
    Inputs,
    PhaseRule,
    SecureAggregationConformance,
    failed_checks,
)
from secfl.testing.conformance_privacy import RecordingRng

THIRD_PARTY = """
from secfl.crypto.plain import Plain
from secfl.testing.conformance import Capabilities, Inputs, PhaseRule, SecureAggregationConformance

class TestMyScheme(SecureAggregationConformance):
    capabilities = Capabilities(
        phases=(PhaseRule(name="plain-input"),), input_phase="plain-input", inputs=Inputs.VISIBLE
    )
    examples = 3

    def scheme(self):
        return Plain(threads=1)
"""


def python(code, **more):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **more)


def test_a_third_party_subclasses_it(tmp_path):
    (tmp_path / "test_mine.py").write_text(THIRD_PARTY)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = {
        "test_equal_sums_look_alike",
        "test_key_material_never_repeats",
        "test_a_client_answers_once",
        "test_clients_with_different_views_never_both_go_on",
        "test_survivors_are_named_before_anything_is_opened",
        "test_what_does_not_fit_is_refused_beforehand",
    }
    assert f"{len(CHECKS) - len(skipped)} passed, {len(skipped)} skipped" in done.stdout


@pytest.mark.parametrize("missing", ["pytest", "hypothesis"])
def test_without_its_tools_the_suite_says_what_to_install(missing):
    done = python(f"import sys; sys.modules[{missing!r}] = None\nimport secfl.testing.conformance")
    assert done.returncode == 1
    assert "ImportError: the conformance suite runs under pytest" in done.stderr
    assert "pip install pytest hypothesis" in done.stderr


def test_attackers_and_fuzzer_need_no_test_tools_and_nothing_heavy():
    done = python(
        "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "import secfl.testing.adversaries as a, secfl.testing.fuzz, secfl.testing.stage\n"
        "a.every_attack()\n"
        "print(*(name for name in ('torch', 'monai', 'opacus', 'tenseal') if name in sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_the_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        SecureAggregationConformance()


def test_failed_checks_names_what_failed_and_leaves_out_what_does_not_apply():
    class Suite(SecureAggregationConformance):
        capabilities = Capabilities(
            phases=(PhaseRule(name="plain-input"),),
            input_phase="plain-input",
            inputs=Inputs.VISIBLE,
            dropouts=Dropouts.FATAL,
        )
        examples = 2
        shrink = False

        def scheme(self):
            return Plain(threads=1)

        def test_survivors_alone_are_summed(self):
            super().test_survivors_alone_are_summed()
            raise AssertionError("it applied")

        def test_the_sum_is_exact(self):
            raise ZeroDivisionError

    failures = failed_checks(Suite(), checks=["test_the_sum_is_exact", "test_survivors_alone_are_summed"])
    assert list(failures) == ["test_the_sum_is_exact"]
    assert isinstance(failures["test_the_sum_is_exact"], ZeroDivisionError)


def test_a_recording_source_remembers_across_forks():
    rng = RecordingRng(1)
    first = rng.bytes(8)
    second = rng.fork("a").bytes(4)
    assert rng.drawn == [first, second]
    assert not rng.is_secret
    again = RecordingRng(1)
    assert (again.bytes(8), again.fork("a").bytes(4)) == (first, second)
