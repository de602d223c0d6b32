import json

import pytest

from bundle import LAYOUT
from bundle.errors import GoldenMismatchError
from service.engine.session import Session
from service.engine.tokenization import Tokenizer
from service.golden import check_golden, verify_variant
from tests.service.helpers import changed, pair_bundle, reference_scores


def check(bundle):
    session = Session(bundle.path(LAYOUT.model("fp32")), labels=2)
    return check_golden(bundle, "fp32", session, Tokenizer(bundle.path(LAYOUT.tokenizer), bundle.manifest.max_length))


def with_golden(bundle, folder, scores, tolerance=1e-4):
    lines = [
        json.dumps({"text": "great film", "scores": {"fp32": reference_scores("great film")}}),
        json.dumps({"text": "a good movie", "scores": {"fp32": scores}}),
    ]
    variants = [bundle.manifest.variants[0].model_dump() | {"golden_tolerance": tolerance}]
    return changed(bundle, folder, files={LAYOUT.golden: "\n".join(lines).encode()}, variants=variants)


def test_an_honest_bundle_passes_with_a_report(tiny_bundle):
    report = check(tiny_bundle)
    assert (report.inputs, report.tolerance) == (5, 1e-4)
    assert report.largest_difference <= 1e-6
    assert verify_variant(tiny_bundle, "fp32") == report


def test_scores_from_the_outside_reference_pass(tiny_bundle, tmp_path):
    assert check(with_golden(tiny_bundle, tmp_path / "b", reference_scores("a good movie"))).inputs == 2


def test_a_moved_score_names_line_label_found_expected_and_tolerance(tiny_bundle, tmp_path):
    negative, positive = reference_scores("a good movie")
    bundle = with_golden(tiny_bundle, tmp_path / "b", [negative - 0.01, positive])
    with pytest.raises(GoldenMismatchError) as caught:
        check(bundle)
    message = str(caught.value)
    for part in ("golden.jsonl:2", "'negative'", f"{negative:.4f}", f"{negative - 0.01:.4f}", "0.0001"):
        assert part in message


def test_a_score_within_the_tolerance_passes(tiny_bundle, tmp_path):
    negative, positive = reference_scores("a good movie")
    bundle = with_golden(tiny_bundle, tmp_path / "b", [negative - 0.01, positive], tolerance=0.02)
    assert check(bundle).largest_difference == pytest.approx(0.01, abs=1e-5)


def test_a_flip_counts_only_where_the_recorded_margin_exceeds_the_tolerance(tiny_bundle, tmp_path):
    negative, positive = reference_scores("a good movie")  # negative leads
    gap = negative - positive
    assert gap > 0
    recorded = [negative - 0.75 * gap, positive + 0.75 * gap]  # positive leads by gap / 2
    assert check(with_golden(tiny_bundle, tmp_path / "b", recorded, tolerance=0.8 * gap)).inputs == 2


def test_a_flip_over_the_margin_is_refused(tiny_bundle, tmp_path):
    negative, positive = reference_scores("a good movie")
    gap = negative - positive
    # Both scores move by 1.2 gap, within the tolerance; the recorded margin, 1.4 gap, is over it.
    recorded = [negative - 1.2 * gap, positive + 1.2 * gap]
    with pytest.raises(GoldenMismatchError, match=r"golden\.jsonl:2.*top label 'negative'.*'positive'.*margin"):
        check(with_golden(tiny_bundle, tmp_path / "b", recorded, tolerance=1.3 * gap))


def test_a_score_that_is_no_number_is_a_mismatch(tiny_bundle, tmp_path):
    class Broken(Session):
        def run(self, arrays):
            return super().run(arrays) * float("nan")

    session = Broken(tiny_bundle.path(LAYOUT.model("fp32")))
    with pytest.raises(GoldenMismatchError, match="nan"):
        check_golden(tiny_bundle, "fp32", session, Tokenizer(tiny_bundle.path(LAYOUT.tokenizer), 16))


def test_temperature_and_pairs_are_part_of_the_check(tiny_bundle, tmp_path):
    assert check(pair_bundle(tiny_bundle, tmp_path / "pairs")).inputs == 1
    with pytest.raises(GoldenMismatchError):
        check(changed(tiny_bundle, tmp_path / "hot", temperature=2.0))
