import asyncio
import os
import threading

import pytest

from bundle import LAYOUT
from bundle.manifest import Variant
from service import sessions as sessions_module
from service import settings as settings_module
from service.engine.errors import SessionError
from service.engine.session_options import CPU, CUDA, TENSORRT
from service.engine.shapes import build_grid
from service.errors import DrainingError, InferenceError, NotReadyError, StartupError, UnknownModelError
from service.folders import find_bundles
from service.metrics import Metrics
from service.model import load_model
from service.registry import Registry, natural_key
from service.sessions import calls_side_by_side, make_session, warm_up_shapes
from service.settings import Settings
from service.variants import Choice, choose_variant
from tests.service.helpers import changed, reference_scores, settings_for, until
from tests.support.bundles import make_bundle, tiny_manifest


def variant(name="fp32", dtype="float32", providers=(CPU,), *, invariant=True, gate=True) -> Variant:
    return Variant(
        name=name,
        file=LAYOUT.model(name),
        dtype=dtype,
        execution_providers=providers,
        golden_tolerance=1e-4,
        batch_invariant=invariant,
        gate_passed=gate,
    )


FP32 = variant(providers=(CUDA, CPU))
FP16 = variant("fp16", "float16", (CUDA,), invariant=False)
INT8 = variant("int8", "int8", (CPU,))


@pytest.mark.parametrize(
    ("variants", "providers", "expected"),
    [
        ([FP32, INT8], [CPU], ("int8", CPU)),
        ([FP32, INT8, FP16], [CUDA, CPU], ("fp16", CUDA)),
        ([FP32, INT8], [CUDA, CPU], ("fp32", CUDA)),
        ([variant("int8", "int8", (CUDA, CPU))], [CUDA, CPU], ("int8", CPU)),
        ([FP32, variant("int8", "int8", invariant=False)], [CPU], ("fp32", CPU)),
        ([FP32, variant("int8", "int8", gate=False)], [CPU], ("fp32", CPU)),
    ],
)
def test_auto_takes_the_fastest_exact_variant_of_the_hardware(variants, providers, expected):
    choice = choose_variant(tiny_manifest(variants=variants), "auto", providers)
    assert (choice.variant.name, choice.provider) == expected


def test_auto_names_all_variants_when_none_fits():
    manifest = tiny_manifest(variants=[FP16, variant("int8", "int8", gate=False)])
    with pytest.raises(StartupError, match=r"fp16 \(float16.*int8 .*did not pass"):
        choose_variant(manifest, "auto", [CPU])


def test_a_named_variant_is_taken_at_its_word():
    manifest = tiny_manifest(variants=[FP32, variant("stock", "int8", (CUDA, CPU), invariant=False)])
    assert choose_variant(manifest, "stock", [CUDA, CPU]).provider == CPU
    assert choose_variant(manifest, "fp32", [CUDA, CPU]).provider == CUDA


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("int4", "no variant 'int4'; expected auto or one of: fp16, bad"),
        ("bad", "quality gate"),
        ("fp16", "runs on CUDA"),
    ],
)
def test_a_named_variant_that_cannot_be_served_is_an_error(wanted, message):
    with pytest.raises(StartupError, match=message):
        choose_variant(tiny_manifest(variants=[FP16, variant("bad", gate=False)]), wanted, [CPU])


@pytest.mark.parametrize(
    ("provider", "expected"),
    [("cpu", ("int8", CPU)), ("cuda", ("fp16", CUDA)), ("tensorrt", ("fp16", TENSORRT)), ("auto", ("fp16", CUDA))],
)
def test_a_provider_that_is_asked_for_decides_the_variant(provider, expected):
    manifest = tiny_manifest(variants=[FP32, INT8, FP16])
    choice = choose_variant(manifest, "auto", [TENSORRT, CUDA, CPU], provider)
    assert (choice.variant.name, choice.provider) == expected


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_absent_is_an_error_with_setting_found_and_expected(provider):
    with pytest.raises(StartupError, match=rf"LIMBECK_PROVIDER.*found '{provider}', but.* has only {CPU}; .*auto or c"):
        choose_variant(tiny_manifest(variants=[FP32]), "auto", [CPU], provider)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_int8_is_never_sent_to_a_gpu_even_by_name(provider):
    manifest = tiny_manifest(variants=[variant("int8", "int8", (TENSORRT, CUDA, CPU))])
    with pytest.raises(StartupError, match="int8 is never sent to a GPU"):
        choose_variant(manifest, "int8", [TENSORRT, CUDA, CPU], provider)
    with pytest.raises(StartupError, match="no variant fits"):
        choose_variant(manifest, "auto", [TENSORRT, CUDA, CPU], provider)


def test_versions_sort_naturally():
    versions = ["1.10", "1.9", "beta", "2", "1.9.1"]
    assert sorted(versions, key=natural_key) == ["beta", "1.9", "1.9.1", "1.10", "2"]


def test_a_model_folder_is_a_bundle_or_holds_bundles(tmp_path):
    make_bundle(tmp_path / "all" / "b")
    make_bundle(tmp_path / "all" / "a")  # its scratch folder is hidden, and so ignored
    (tmp_path / "all" / "notes.txt").write_text("not a folder")
    root = tmp_path / "all"
    assert find_bundles(Settings(model_folder=root)) == [root / "a", root / "b"]
    assert find_bundles(Settings(model_folder=root / "a")) == [root / "a"]
    assert find_bundles(Settings(model_folder=root / "a", bundles=[root / "b"])) == [root / "b", root / "a"]


def test_a_model_folder_without_bundles_is_an_error(tmp_path):
    with pytest.raises(StartupError, match="no bundle in it"):
        find_bundles(Settings(model_folder=tmp_path))
    with pytest.raises(StartupError, match="expected a folder, found none"):
        find_bundles(Settings(model_folder=tmp_path / "absent"))


def test_loading_verifies_hashes_and_golden_scores(tiny_bundle, tmp_path):
    model = load_model(tiny_bundle.folder, settings_for(tiny_bundle))
    assert model.variant.name == "fp32"
    assert not model.ready
    with pytest.raises(NotReadyError):
        _ = model.batcher
    hot = changed(tiny_bundle, tmp_path / "hot", temperature=3.0)
    with pytest.raises(StartupError, match=r"cannot load bundle .*hot: GoldenMismatchError"):
        load_model(hot.folder, settings_for(hot))
    model_file = tiny_bundle.path(LAYOUT.model("fp32"))
    model_file.write_bytes(model_file.read_bytes()[:-1] + b"x")
    with pytest.raises(StartupError, match="HashMismatchError"):
        load_model(tiny_bundle.folder, settings_for(tiny_bundle))


def test_loading_refuses_broken_models_and_tokenizers(tiny_bundle, tmp_path):
    broken = {LAYOUT.model("fp32"): b"no model", LAYOUT.tokenizer: b"{"}
    for name, error in ((LAYOUT.model("fp32"), "SessionError"), (LAYOUT.tokenizer, "TokenizerLoadError")):
        bad = changed(tiny_bundle, tmp_path / name, files={name: broken[name]})
        with pytest.raises(StartupError, match=error):
            load_model(bad.folder, settings_for(bad))


@pytest.fixture
def both(tiny_bundle, tmp_path, monkeypatch):
    """A bundle for CPU and CUDA, on a machine where CUDA is listed but does not work."""
    real = sessions_module.Session

    def session(path, *, provider, **options):
        if provider != CPU:
            raise SessionError("no GPU here")
        return real(path, provider=provider, **options)

    monkeypatch.setattr(sessions_module, "available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(sessions_module, "Session", session)
    return changed(tiny_bundle, tmp_path / "both", variants=[FP32.model_dump()])


@pytest.mark.parametrize("wanted", ["auto", "fp32"])
def test_auto_falls_back_to_the_cpu_where_cuda_is_listed_but_does_not_work(both, wanted, caplog):
    assert load_model(both.folder, settings_for(both, variant=wanted)).session.provider == CPU
    assert "no GPU here; taking the CPU instead" in caplog.text


@pytest.mark.parametrize(("provider", "reason"), [("cuda", "no GPU here"), ("tensorrt", "has only CUDA")])
def test_a_provider_asked_for_is_never_replaced(both, provider, reason, caplog):
    with pytest.raises(StartupError, match=rf"LIMBECK_PROVIDER.*found '{provider}'.*{reason}"):
        load_model(both.folder, settings_for(both, provider=provider))
    assert caplog.text == ""


def test_the_cpu_can_be_asked_for_where_cuda_works(both, caplog):
    assert load_model(both.folder, settings_for(both, provider="cpu")).session.provider == CPU
    assert caplog.text == ""


def test_a_gpu_gets_the_grid_of_the_settings_and_the_cpu_none(tiny_bundle, tmp_path, monkeypatch):
    asked = {}

    def session(path, *, provider, options, **others):
        asked[provider] = options

    monkeypatch.setattr(sessions_module, "Session", session)
    settings = settings_for(
        tiny_bundle, max_batch_size=4, threads=3, cuda_graphs=False, provider="tensorrt", tensorrt_cache=tmp_path / "c"
    )
    for provider in (CPU, CUDA, TENSORRT):
        make_session(tiny_bundle, Choice(variant("fp32", "float16"), provider), 5, settings)
    assert asked[CPU].grid is None
    assert asked[CPU].threads == 3
    assert asked[CUDA].tensorrt_cache is None
    for provider in (CUDA, TENSORRT):
        assert asked[provider].grid.rows == (1, 2, 4)
        assert asked[provider].grid.lengths == (16,)  # the tiny bundle's max_length
        assert asked[provider].grid.pad_id == 5
        assert asked[provider].half
        assert asked[provider].input_names == ("input_ids", "attention_mask")
    model_hash = tiny_bundle.manifest.files[LAYOUT.model("fp32")].sha256
    cache = asked[TENSORRT].tensorrt_cache
    assert cache.is_dir()
    assert cache.parent == tmp_path / "c"
    assert cache.name.startswith(model_hash[:16])


def test_calls_side_by_side_follow_the_machine_unless_they_are_set(tiny_bundle, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(settings_module, "_cpu_limit", lambda _cgroup: None)

    def calls(provider, **values):
        return calls_side_by_side(Settings(bundles=(tiny_bundle.folder,), **values), provider)

    assert calls(CPU) == 8
    assert calls(CPU, threads=2) == 4
    assert calls(CPU, threads=16) == 1
    assert calls(CUDA) == calls(TENSORRT) == 2
    assert calls(CPU, sessions=3) == calls(CUDA, sessions=3) == 3


def test_warm_up_runs_the_grid_on_a_gpu_and_a_few_shapes_on_cpu(tiny_bundle):
    settings = settings_for(tiny_bundle, max_batch_size=8, max_batch_tokens=256)
    grid = build_grid(max_batch_size=8, max_batch_tokens=256, max_length=128)
    assert set(warm_up_shapes(grid, settings, 128)) == set(grid.shapes)
    assert warm_up_shapes(None, settings, 128) == [(8, 16), (2, 128), (1, 128), (1, 16)]
    assert warm_up_shapes(None, settings, 10) == [(8, 10), (1, 10)]


def test_a_session_that_hangs_is_replaced_by_one_of_its_own(tiny_bundle, monkeypatch, caplog):
    hangs, released = threading.Event(), threading.Event()

    async def run():
        settings = settings_for(tiny_bundle, hung_session_s=0.5)
        model = load_model(tiny_bundle.folder, settings)
        real = model.session.run

        def run(arrays):
            hangs.set()
            assert released.wait(20)
            return real(arrays)

        monkeypatch.setattr(model.session, "run", run)
        model.start(settings, Metrics())
        with pytest.raises(InferenceError):
            await model.batcher.classify(["a good movie"])
        await until(lambda: model.ready)
        (result,) = await model.batcher.classify(["a good movie"])
        released.set()
        await model.close(5)
        return result.output[0].tolist()

    assert asyncio.run(run()) == pytest.approx(reference_scores("a good movie"), abs=1e-6)
    assert hangs.is_set()


def loaded(*bundles):
    return [load_model(bundle.folder, settings_for(bundle)) for bundle in bundles]


def test_the_highest_version_answers_and_any_can_be_pinned(tiny_bundle, tmp_path):
    bundles = [changed(tiny_bundle, tmp_path / version, version=version) for version in ("1.9", "1.10")]
    registry = Registry()
    with pytest.raises(NotReadyError):
        registry.get()
    registry.publish(loaded(*bundles))
    assert registry.get().manifest.version == "1.10"
    assert registry.get("tiny", "1.9").manifest.version == "1.9"
    assert [model.manifest.version for model in registry.versions("tiny")] == ["1.10", "1.9"]
    with pytest.raises(UnknownModelError, match=r"'3'.*1\.10, 1\.9"):
        registry.get("tiny", "3")
    with pytest.raises(UnknownModelError, match="'other'; there are: tiny"):
        registry.get("other")


def test_several_models_need_a_default(tiny_bundle, tmp_path):
    models = loaded(tiny_bundle, make_bundle(tmp_path / "b", name="other"))
    registry = Registry()
    registry.publish(models)
    with pytest.raises(UnknownModelError, match="none is the default"):
        registry.get()
    registry = Registry("other")
    registry.publish(models)
    assert registry.get().manifest.name == "other"
    with pytest.raises(StartupError, match="default_model 'third'"):
        Registry("third").publish(models)


def test_two_bundles_of_one_name_and_version_are_an_error_naming_both(tiny_bundle, tmp_path):
    twin = make_bundle(tmp_path / "twin")
    with pytest.raises(StartupError) as caught:
        Registry().publish(loaded(tiny_bundle, twin))
    assert str(tiny_bundle.folder) in str(caught.value)
    assert str(twin.folder) in str(caught.value)


def test_draining_before_anything_is_loaded():
    registry = Registry()
    registry.begin_draining()
    assert registry.draining
    with pytest.raises(DrainingError):
        registry.get()
