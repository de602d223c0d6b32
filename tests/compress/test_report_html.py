"""The bundle's report: its numbers are scikit-learn's and seqeval's, its texts are text, and it asks for nothing."""

from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.special import softmax
from seqeval.metrics import classification_report as entity_report
from sklearn.calibration import calibration_curve
from sklearn.metrics import classification_report, confusion_matrix, multilabel_confusion_matrix
from sklearn.preprocessing import MultiLabelBinarizer

from bundle import Bundle, Task
from bundle.manifest import Calibration, CalibrationBin, ClassMetrics, Interval, Quality, StageMetrics
from compress.confidence import Fitted
from compress.evidence import LONGEST, Cases, Confusion, Evidence, gather
from compress.examples import Example
from compress.measure import Answers, Ruler
from compress.pack import pack
from compress.recipe import Evaluate
from compress.report_html import report_html
from compress.report_page import served_on
from compress.rows import Encoded
from compress.story import Story, curves
from compress.tasks import SPECS
from service.engine.session_options import CPU, CUDA
from service.errors import StartupError
from service.variants import choose_variant
from tests.compress.test_pack import LABELS, QUICK, save_model
from tests.support.bundles import tiny_manifest
from tests.support.html import Page
from tests.support.reference import Served
from tests.support.rows import Row, tiny_rows, write_lines

TASKS = list(Task)
ROWS = 45
HOSTILE = '<script>alert("x")</script>&amp;\u202e\x00\x1b</td><!--שלום'
SAFE = '<script>alert("x")</script>&amp;\ufffd\ufffd\ufffd</td><!--שלום'
NAMES = {"positive": "<i onclick=x>po's</i>&", "negative": 'neg"\u202eative'}
"""What the labels of the single-label model are renamed to."""


def hostile(row: Row) -> Row:
    """A row with something in its text that must not become a part of the page."""
    if "tokens" in row:
        return {"tokens": [*row["tokens"], HOSTILE], "tags": [*row["tags"], "O"]}
    long = " x" * LONGEST if "text_pair" in row else ""
    changed = row | {"text": f"{HOSTILE} {row['text']}{long}"}
    return changed | {"label": NAMES[row["label"]]} if row.get("label") in NAMES else changed


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Bundle]:
    """Models with random weights, which are often wrong; all of their test rows are golden inputs."""
    folder = tmp_path_factory.mktemp("reports")
    found = {}
    for task in TASKS:
        data = write_lines(folder / f"{task.value}.jsonl", [hostile(row) for row in tiny_rows(ROWS, 5, task)])
        names = [NAMES[label] for label in LABELS[task]] if task is Task.SINGLE_LABEL else None
        found[task] = packed(save_model(folder / f"{task.value}-model", task), folder / task.value, data, names)
    return found


def packed(model: Path, out: Path, data: Path | None, names: list[str] | None = None, *more: str) -> Bundle:
    overrides = [*QUICK, *more, *(["calibrate.temperature=true"] if data else [])]
    return pack(str(model), data, out, Console(quiet=True), labels=names, overrides=overrides)


def page_of(bundle: Bundle) -> Page:
    return Page(bundle.path("report.html").read_text(encoding="utf-8"))


def body(page: Page, caption: str) -> list[list[str]]:
    return next(rows[1:] for told, rows in page.tables.items() if told.startswith(caption))


def answers(bundle: Bundle) -> tuple[list[Any], list[Any], np.ndarray]:
    """True answers, the INT8 model's, and its scores (all rows, labels), by the golden inputs or the files alone."""
    golden, labels, task = bundle.golden(), list(bundle.manifest.labels), bundle.manifest.task
    if task is Task.TOKEN_CLASSIFICATION:
        served = Served(bundle.folder, "int8")
        rows = [{"tokens": line.text.split(), "tags": (line.label or "").split()} for line in golden]
        return [row["tags"] for row in rows], [served.answer(row) for row in rows], np.empty(0)
    scores = np.array([line.scores["int8"] for line in golden])
    if task is Task.MULTI_LABEL:
        binarizer = MultiLabelBinarizer(classes=labels)
        truth = binarizer.fit_transform([[name for name in (line.label or "").split("|") if name] for line in golden])
        return truth, (scores >= 0.5).astype(int), scores
    return [labels.index(line.label or "") for line in golden], list(scores.argmax(axis=1)), scores


@pytest.mark.parametrize("task", TASKS)
def test_the_page_is_well_formed_and_asks_for_nothing(bundles: dict[Task, Bundle], task: Task) -> None:
    page = page_of(bundles[task])
    assert page.problems == []
    assert page.policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert bundles[task].path("report.html").stat().st_size < 500_000


@pytest.mark.parametrize("task", TASKS)
def test_texts_and_labels_of_the_data_are_text(bundles: dict[Task, Bundle], task: Task) -> None:
    bundle = bundles[task]
    raw, page = bundle.path("report.html").read_bytes().decode(), page_of(bundle)
    assert "<script" not in raw
    assert not set("\x00\x1b\u202e") & set(raw)
    assert any(SAFE in cell for row in body(page, "Wrong, and sure of it") for cell in row)
    if task is Task.SINGLE_LABEL:
        assert [row[0] for row in body(page, "Quality by label")] == ["<i onclick=x>po's</i>&", 'neg"\ufffdative']


@pytest.mark.parametrize("task", TASKS)
def test_the_stages_are_the_manifests(bundles: dict[Task, Bundle], task: Task) -> None:
    bundle = bundles[task]
    page = page_of(bundle)
    assert f"Measured on {bundle.manifest.lineage.data['test'].rows} test texts" in page.text
    rows = page.tables["Stages"][1:]
    assert [row[0] for row in rows] == ["original FP32", "packed FP32", "packed INT8", "packed FP16"]
    for row, metrics in zip(rows, bundle.manifest.metrics, strict=True):
        assert metrics.quality is not None
        main = next(iter(metrics.quality.scores.values()))
        assert row[1] == f"{100 * main.value:.1f} [{100 * main.low:.1f}–{100 * main.high:.1f}]"
        assert row[3].startswith(f"{metrics.onnx_bytes / 1e6:.1f} MB (")
        if metrics.latency_ms is not None:
            assert row[4].startswith(f"{metrics.latency_ms.batch_1.median_ms:.2f} ms (")
    assert rows[3][4] == "for CUDA"


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.PAIR])
def test_the_confusion_matrix_is_scikit_learns(bundles: dict[Task, Bundle], task: Task) -> None:
    truth, found, _ = answers(bundles[task])
    expected = confusion_matrix(truth, found, labels=range(2))
    assert expected[0, 1] + expected[1, 0] > 0
    rows = body(page_of(bundles[task]), "Confusion matrix")
    assert [[int(cell) for cell in row[1:]] for row in rows] == expected.tolist()


def test_what_is_given_of_several_labels_is_scikit_learns(bundles: dict[Task, Bundle]) -> None:
    truth, found, _ = answers(bundles[Task.MULTI_LABEL])
    rows = body(page_of(bundles[Task.MULTI_LABEL]), "What is given and what is true")
    for row, ((neither, given), (missed, both)) in zip(rows, multilabel_confusion_matrix(truth, found), strict=True):
        assert [int(cell) for cell in row[1:]] == [both, given, missed, neither]


def test_entities_are_confused_as_seqeval_counts_them(bundles: dict[Task, Bundle]) -> None:
    """The diagonal is what seqeval finds right; a row holds all true entities of its type, a column all given ones."""
    truth, found, _ = answers(bundles[Task.TOKEN_CLASSIFICATION])
    expected = entity_report(truth, found, output_dict=True, zero_division=0)
    rows = body(page_of(bundles[Task.TOKEN_CLASSIFICATION]), "Confusion matrix")
    cells = np.array([[int(cell) for cell in row[1:]] for row in rows])
    *types, outside = [row[0] for row in rows]
    assert outside == "no entity"
    assert cells[:-1, :-1].sum() > np.trace(cells[:-1, :-1]) > 0  # some of another type, too
    for place, name in enumerate(types):
        assert cells[place].sum() == expected[name]["support"]
        assert cells[place, place] == round(expected[name]["recall"] * expected[name]["support"])
        if expected[name]["precision"]:
            given = cells[place, place] / expected[name]["precision"]
            assert cells[:, place].sum() == round(given)


@pytest.mark.parametrize("task", TASKS)
def test_quality_by_label_is_the_references(bundles: dict[Task, Bundle], task: Task) -> None:
    truth, found, _ = answers(bundles[task])
    tagged = task is Task.TOKEN_CLASSIFICATION
    report = entity_report if tagged else classification_report
    expected = report(truth, found, output_dict=True, zero_division=0)
    rows = body(page_of(bundles[task]), "Quality by entity type" if tagged else "Quality by label")
    for place, (name, *cells) in enumerate(rows):
        one = expected[name if tagged else str(place)]
        assert cells == [f"{one[key]:.3f}" for key in ("precision", "recall", "f1-score")] + [str(int(one["support"]))]


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL])
def test_the_reliability_diagram_is_scikit_learns(bundles: dict[Task, Bundle], task: Task) -> None:
    truth, found, scores = answers(bundles[task])
    if task is Task.MULTI_LABEL:
        right, confidence = np.ravel(truth), scores.ravel()
    else:
        right, confidence = np.equal(truth, found), scores.max(axis=1)
    shares, means = calibration_curve(right, confidence, n_bins=15)
    page = page_of(bundles[task])
    rows = [row for row in body(page, "Bins of equal width") if row[1] != "0"]
    assert [row[2:] for row in rows] == [[f"{m:.3f}", f"{s:.3f}"] for m, s in zip(means, shares, strict=True)]
    counts = np.array([int(row[1]) for row in rows])
    assert f"(ECE) {(counts * np.abs(shares - means)).sum() / len(right):.3f} after temperature" in page.text


def test_the_error_before_the_temperature_is_that_of_the_bare_logits(bundles: dict[Task, Bundle]) -> None:
    bundle = bundles[Task.SINGLE_LABEL]
    assert bundle.manifest.temperature != 1
    truth, found, _ = answers(bundle)
    served = Served(bundle.folder, "int8")
    confidence = softmax([served.logits(line.text)[0] for line in bundle.golden()], axis=1).max(axis=1)
    shares, means = calibration_curve(np.equal(truth, found), confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    expected = (counts[counts > 0] * np.abs(shares - means)).sum() / len(truth)
    assert f"{expected:.3f} before" in page_of(bundle).text


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.PAIR])
def test_the_worst_mistakes_are_the_surest_wrong_answers(bundles: dict[Task, Bundle], task: Task) -> None:
    bundle = bundles[task]
    truth, found, scores = answers(bundle)
    labels = [label.replace("\u202e", "\ufffd") for label in bundle.manifest.labels]
    wrong = np.flatnonzero(np.not_equal(truth, found))
    worst = wrong[np.argsort(-scores[wrong].max(axis=1), kind="stable")][:20]
    page = page_of(bundle)
    assert f"{len(wrong)} of {len(truth)} texts are wrong" in page.text
    rows = body(page, "Wrong, and sure of it")
    assert [row[1:4] for row in rows] == [
        [labels[truth[at]], labels[found[at]], f"{scores[at].max():.3f}"] for at in worst
    ]
    golden = bundle.golden()
    for row, at in zip(rows, worst, strict=True):
        assert row[0].endswith(golden[at].text_pair or golden[at].text.removeprefix(HOSTILE).strip())


def test_of_several_labels_the_one_that_is_surely_wrong_is_told(bundles: dict[Task, Bundle]) -> None:
    bundle = bundles[Task.MULTI_LABEL]
    truth, found, scores = answers(bundle)
    sure = np.where(np.not_equal(truth, found), np.where(found, scores, 1 - scores), -1)
    text, label = np.unravel_index(sure.argmax(), sure.shape)
    first = body(page_of(bundle), "Wrong, and sure of it")[0]
    names = bundle.manifest.labels
    assert first[1] == names[label]
    assert first[2] == (", ".join(name for name, given in zip(names, truth[text], strict=True) if given) or "none")
    assert first[4] == f"{scores[text, label]:.3f}"


def test_of_words_the_wrong_tag_is_told_with_its_word(bundles: dict[Task, Bundle]) -> None:
    bundle = bundles[Task.TOKEN_CLASSIFICATION]
    truth, found, _ = answers(bundle)
    wrong = Counter(
        (word.replace(HOSTILE, SAFE), true, given)
        for line, own, guess in zip(bundle.golden(), truth, found, strict=True)
        for word, true, given in zip(line.text.split(), own, guess, strict=True)
        if true != given
    )
    page = page_of(bundle)
    assert sum(wrong.values()) > 20
    rows = body(page, "Wrong, and sure of it")
    assert len(rows) <= 20
    assert all(tuple(row[1:4]) in wrong for row in rows)
    told = [float(row[4]) for row in rows]
    assert told == sorted(told, reverse=True)


def said(decisions: list[Any], texts: list[int], words: list[int] | None = None) -> Answers:
    """Rows that were decided so, with a logit of 2 for what was decided; `texts` are the rows' texts."""
    decided = np.array(decisions)
    width = decided.shape[1] if decided.ndim > 1 else 3
    rows = np.where(decided, 2.0, -2.0) if decided.ndim > 1 else 2.0 * np.eye(width)[decided]
    first = np.searchsorted(texts, np.arange(max(texts) + 2))
    places = None if words is None else np.array(words)
    encoded = Encoded([], np.zeros(decided.shape, dtype=np.int64), first, places, places)
    return Answers(rows.astype(np.float32), encoded, decided, None)


def disagreements(task: Task, own: Answers, teacher: Answers, examples: list[Example]) -> list[tuple[Any, ...]]:
    ruler = Ruler(SPECS[task], ["a", "b", "c"], Evaluate(), 0, Console(quiet=True))
    subject: Any = SimpleNamespace(fitted=Fitted())
    found = gather(ruler, subject, own, teacher, examples)
    assert found.mistakes is None  # nobody knows the truth
    assert found.disagreements.found == len(found.disagreements.shown)
    cases = sorted(found.disagreements.shown, key=lambda case: case.text)
    return [(case.text, case.about, case.true, case.predicted, case.teacher) for case in cases]


def test_disagreements_are_where_student_and_teacher_differ() -> None:
    examples = [Example(text, None, "") for text in ("one", "two", "three")]
    found = disagreements(Task.SINGLE_LABEL, said([0, 1, 2], [0, 1, 2]), said([0, 2, 1], [0, 1, 2]), examples)
    assert found == [("three", None, None, "c", "b"), ("two", None, None, "b", "c")]
    own, other = [[True, True, False], [False] * 3], [[True, False, False], [False] * 3]
    found = disagreements(Task.MULTI_LABEL, said(own, [0, 1]), said(other, [0, 1]), examples[:2])
    assert found == [("one", "b", None, "a, b", "a")]


def test_words_are_compared_by_their_place_and_words_that_the_teacher_cut_are_not() -> None:
    """The student read three words of the first text and one of the second; the teacher two and one."""
    examples = [Example("x y z", None, "", words=("x", "y", "z")), Example("w", None, "", words=("w",))]
    own, teacher = said([0, 1, 1, 2], [0, 0, 0, 1], [0, 1, 2, 0]), said([0, 2, 1], [0, 0, 1], [0, 1, 0])
    assert disagreements(Task.TOKEN_CLASSIFICATION, own, teacher, examples) == [
        ("w", "w", None, "c", "b"),
        ("x y z", "y", None, "b", "c"),
    ]


def test_without_data_it_says_what_was_not_measured(bundles: dict[Task, Bundle], tmp_path: Path) -> None:
    model = bundles[Task.PAIR].folder.parent / "pair-model"
    page = page_of(packed(model, tmp_path / "bundle", None))
    assert page.problems == []
    for told in (
        "Quality was not measured: no labeled data was given.",
        "nobody knows which answers are wrong",
        "Calibration was not measured",
        "Nothing was trained for this bundle.",
        "equal bit by bit",
        "No baselines were measured.",
        "sample texts that come with Limbeck",
    ):
        assert told in page.text
    assert "Bins of equal width" not in page.tables


def test_no_text_of_the_data_is_in_it_when_the_recipe_says_so(bundles: dict[Task, Bundle], tmp_path: Path) -> None:
    folder = bundles[Task.PAIR].folder.parent
    bundle = packed(folder / "pair-model", tmp_path / "bundle", folder / "pair.jsonl", None, "report.texts=0")
    page = page_of(bundle)
    assert "Their texts are left out: report.texts is 0." in page.text
    assert all(HOSTILE in line.text for line in bundle.golden())
    assert "alert" not in page.text


@pytest.mark.parametrize("seed", range(8))
def test_it_names_the_variants_that_the_service_takes(bundles: dict[Task, Bundle], seed: int) -> None:
    """Against the service's own choice, over every outcome of the gate."""
    manifest = bundles[Task.PAIR].manifest
    outcomes = list(product((True, False), repeat=6))[seed::8]
    for passed_and_exact in outcomes:
        variants = [
            variant.model_copy(update={"gate_passed": passed, "batch_invariant": exact})
            for variant, passed, exact in zip(
                manifest.variants, passed_and_exact[:3], passed_and_exact[3:], strict=True
            )
        ]
        changed = manifest.model_copy(update={"variants": tuple(variants)})
        for provider in (CPU, CUDA):
            try:
                expected = choose_variant(changed, "auto", [provider]).variant
            except StartupError:
                expected = None
            assert served_on(changed, provider) == expected


def test_a_thousand_labels_with_long_names_stay_within_bounds() -> None:
    names = tuple(f"{number} " + "label" * 100 for number in range(1000))
    interval = Interval(value=0.5, low=0.4, high=0.6)
    bins = (CalibrationBin(low=0, high=1, count=9, mean_confidence=0.5, accuracy=0.5),)
    quality = Quality(
        scores={"accuracy": interval},
        retained=interval,
        drop=interval,
        recall_drops={},
        per_class={name: ClassMetrics(precision=0, recall=0, f1=0, support=n) for n, name in enumerate(names)},
        slices={},
        calibration=Calibration(expected_error=0.1, bins=bins),
    )
    rows = [
        StageMetrics(stage=stage, quality=quality, onnx_bytes=10, label_flips=interval)
        for stage in ("teacher", "student")
    ]
    manifest = tiny_manifest(labels=names, metrics=rows)
    cells = tuple((true, (true + 1) % 1000, true + 1) for true in range(1000))
    evidence = Evidence(
        confusion=Confusion(names=names, cells=cells),
        label_counts=None,
        uncalibrated=None,
        mistakes=None,
        disagreements=Cases(found=0, decisions=9, shown=()),
    )
    method = {"method": "per-token", "kept_float": 0, "failures": [], "relative_time": None}
    text = report_html(manifest, Story({"student": evidence}, {"method": "", "candidates": [method]}, 20))
    page = Page(text)
    assert len(text.encode()) < 1_000_000
    assert page.problems == []
    pairs = body(page, "The labels most often taken for others")
    assert [int(row[2]) for row in pairs[:3]] == [1000, 999, 998]
    assert len(pairs) == 30
    by_label = body(page, "Quality by label, the 200 most frequent of 1000")
    assert len(by_label) == 200
    assert max(len(row[0]) for row in by_label) <= 80


def test_a_refused_variant_and_a_refused_method_are_shown_with_the_reason(bundles: dict[Task, Bundle]) -> None:
    bundle = bundles[Task.SINGLE_LABEL]
    reason = "accuracy drop is 0.5 <too much>"
    int8, *others = bundle.manifest.variants
    refused = int8.model_copy(update={"gate_passed": False, "gate_reason": reason})
    manifest = bundle.manifest.model_copy(update={"variants": (refused, *others)})
    cases = Cases(found=0, decisions=30, shown=())
    evidence = Evidence(confusion=None, label_counts=None, uncalibrated=None, mistakes=cases, disagreements=cases)
    tried = {
        "method": "per-token",
        "validation": {"teacher": 0.9, "student": 0.9},
        "candidates": [
            {"method": "per-token", "kept_float": 3, "failures": [], "relative_time": 0.4, "quality": 0.9},
            {"method": "static", "kept_float": 0, "failures": ["it flips"], "relative_time": 0.3, "quality": 0.5},
        ],
    }
    story = Story({"student": evidence}, tried, 20)
    assert report_html(manifest, story) == report_html(manifest, story)
    page = Page(report_html(manifest, story))
    assert page.problems == []
    assert f"did not pass the gate and is not served: {reason}." in page.text
    assert "packed INT8 (refused)" in page.text
    assert "static (refused)" in page.text
    methods = body(page, "Chosen on the validation split")
    assert methods[0][1:] == ["90.0", "", "0.40 ×", "3", "holds the gate (chosen)"]
    assert methods[1][5] == "it flips"
    assert "Labels of packed FP32" in page.text


def test_everything_that_was_trained_has_its_curve() -> None:
    trained = {"history": [0.5, 0.75]}
    found = curves(
        {
            "teacher": trained,
            "teacher-2": trained,
            "targets": {},
            "distill": {"epochs": 0},
            "prune": {"steps": [trained, {"epochs": 1}], "quantization_aware": trained},
            "baselines": {"the student without distillation": trained, "TF-IDF": {}},
            "evaluate": {},
        }
    )
    assert list(found) == [
        "teacher",
        "teacher-2",
        "student, after cut 1",
        "student, quantization-aware",
        "the student without distillation",
    ]
    assert set(map(tuple, found.values())) == {(0.5, 0.75)}


def test_long_texts_are_cut(bundles: dict[Task, Bundle]) -> None:
    rows = body(page_of(bundles[Task.PAIR]), "Wrong, and sure of it")
    second = {line.text_pair or "" for line in bundles[Task.PAIR].golden()}
    for text, *_ in rows:
        assert any(text[LONGEST - 1] == "…" and text[LONGEST:] == pair for pair in second)
