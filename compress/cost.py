"""What a student costs as it will be served: its INT8 file's megabytes, or its milliseconds in ONNX Runtime here.

Every measurement is kept in a file. Two runs that read the same file make the same choices, whatever their clocks say.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from scipy.optimize import nnls
from torch import nn
from transformers import AutoConfig

from compress import teacher
from compress.anatomy import anatomy_of
from compress.cut import Kept, cut
from compress.errors import MeasurementsError
from compress.export import export_model, optimize
from compress.graph import Graph
from compress.latency import Timed, measure_latency
from compress.latency_table import measure_curves
from compress.machine import describe_machine
from compress.mask_search import Costs, fewest_blocks
from compress.models import load_classifier
from compress.quantize_weights import MIN_MATRIX_ELEMENTS
from compress.recipe_target import Target
from compress.search import quantizer
from compress.stage import Run, read_json, write_atomic
from service.engine.tokenization import Encoding, Tokenizer

COSTS, _TEACHER = "costs.json", "teacher.onnx"
_TIMED_TEXTS = 64
_CALIBRATION_TEXTS = 32
_SAME_LENGTH_CALLS = 32
_HIDDEN_SHARES = (5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 4)
_QUIET = Console(quiet=True)


@dataclass
class Meter:
    """Measures students of one run; `known` is what was measured before."""

    run: Run
    target: Target
    tokenizer: Tokenizer
    scratch: Path
    known: dict[str, Any]

    @classmethod
    def open(
        cls, run: Run, target: Target, student: nn.Module, tokenizer: Tokenizer, scratch: Path, recorded: Any
    ) -> "Meter":
        """Go on with the measurements of a run that was killed, or with `recorded` ones of students like this one.

        Raises MeasurementsError where those are of something else.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        vocabulary, prune = run.recipe.vocabulary, run.recipe.prune
        architecture: Any = student.config
        of_teacher: Any = AutoConfig.from_pretrained(run.folder("teacher") / teacher.MODEL)
        about = target.model_dump(mode="json", exclude={target.kind}) | {
            "of": target.kind,
            "tokens_known": len(tokenizer.vocabulary()),
            "embedding_rank": vocabulary and vocabulary.embedding_rank,
            "head_width": anatomy_of(student).layers[0].head_width,
            "student": architecture.model_type,
            "teacher": f"{of_teacher.model_type}, {of_teacher.num_hidden_layers} layers of {of_teacher.hidden_size}",
            "prune": {"block": prune.block, "hidden": prune.hidden},
            "method": run.recipe.quantize.candidates[0],
        }
        machine = describe_machine()
        own = read_json(scratch / COSTS)
        known = own or recorded or {"about": about, "machine": machine, "measured": {}}
        if known.get("about") != about:
            found, expected = _differences(known.get("about"), about)
            raise MeasurementsError(f"prune.measurements: they are of {found}; expected {expected}")
        if own is None and target.kind != "size_mb" and known.get("machine") != machine:
            told = f"Warning: prune.measurements: they are of another machine ({known.get('machine', 'unknown')})"
            run.console.print(told, style="yellow", markup=False, soft_wrap=True)
        write_atomic(scratch / COSTS, json.dumps(known))
        return cls(run, target, tokenizer, scratch, known)

    @property
    def wanted(self) -> float:
        """The cost that the recipe wants."""
        return float(self.known["teacher_ms"]) / self.target.value if self._is_ratio else self.target.value

    @property
    def _is_ratio(self) -> bool:
        return self.target.kind == "speedup"

    def close(self) -> None:
        """Delete what was only needed to measure."""
        (self.scratch / _TEACHER).unlink(missing_ok=True)

    def in_words(self, cost: float) -> str:
        """Return a cost in the target's own unit."""
        if self._is_ratio:
            return f"{self.known['teacher_ms'] / cost:.2f}×"
        return f"{cost:.2f} MB" if self.target.kind == "size_mb" else f"{cost:.3f} ms"

    def value(self, cost: float) -> float:
        """Return a cost as the number that the target is compared with."""
        return float(self.known["teacher_ms"]) / cost if self._is_ratio else cost

    def cost(self, model: nn.Module) -> float:
        """Return what `model` costs in INT8; models of the same shape are measured once."""
        key = shape_key(model)
        if key not in self.known["measured"]:
            self._remember("measured", self.known["measured"] | {key: self._measure(model)})
        return float(self.known["measured"][key])

    def costs(self, student: nn.Module) -> Costs:
        """Return the costs of the parts of `student` and of everything narrower."""
        anatomy = anatomy_of(student)
        heads = max(layer.heads for layer in anatomy.layers)
        neurons = max(layer.neurons for layer in anatomy.layers)
        head_width, hidden = anatomy.layers[0].head_width, anatomy.hidden
        widths = self._widths(hidden)
        if self.target.kind == "size_mb":
            per_layer = Costs(
                dict.fromkeys(widths, 0.0),
                # int8 weights and, of each output channel, a float scale and bias
                {h: np.arange(heads + 1) * head_width * (4 * h + 24) / 1e6 for h in widths},
                {h: np.arange(neurons + 1) * (2 * h + 8) / 1e6 for h in widths},
            )
        else:
            if "heads" not in self.known:
                lengths = [encoding.tokens for encoding in self._texts(self.tokenizer)]
                curves = measure_curves(
                    widths,
                    heads,
                    head_width,
                    neurons,
                    lengths,
                    threads=self.target.threads,
                    scratch=self.scratch,
                    console=self.run.console,
                )
                for name, found in zip(("heads", "neurons"), curves, strict=True):
                    self._remember(name, {str(h): np.round(values, 6).tolist() for h, values in found.items()})
            of_heads, of_neurons = (
                {h: np.array(self.known[name][str(h)]) for h in widths} for name in ("heads", "neurons")
            )
            most = len(of_heads[hidden]) - 1, len(of_neurons[hidden]) - 1
            if most[0] < heads or most[1] < neurons:
                raise MeasurementsError(
                    f"prune.measurements: they go up to {most[0]} heads and {most[1]} neurons a layer; expected "
                    f"{heads} and {neurons}"
                )
            per_layer = Costs(dict.fromkeys(widths, 0.0), of_heads, of_neurons)
        return self._fitted(per_layer, student)

    def least(self, student: nn.Module) -> tuple[nn.Module, float]:
        """Return the smallest model that can be cut from `student`, and its cost; which head it has does not matter."""
        settings, small = self.run.recipe.prune, copy.deepcopy(student)
        anatomy = anatomy_of(small)
        layers = (0,) if settings.layers else tuple(range(len(anatomy.layers)))
        width = min(self._widths(anatomy.hidden))
        fewest = settings.block * fewest_blocks(width, settings.block, MIN_MATRIX_ELEMENTS)
        neurons = tuple(tuple(range(min(fewest, anatomy.layers[layer].neurons))) for layer in layers)
        cut(small, Kept(layers, ((0,),) * len(layers), neurons, tuple(range(width))))
        return small, self.cost(small)

    def _widths(self, hidden: int) -> list[int]:
        """Return the hidden widths that a student may have in the end; they are decided by the first one asked for."""
        if "widths" not in self.known:
            settings = self.run.recipe.prune
            self._remember("widths", hidden_widths(hidden, settings.block) if settings.hidden else [hidden])
        widths = [width for width in self.known["widths"] if width <= hidden]
        if hidden not in widths:
            raise MeasurementsError(
                f"prune.measurements: they are of students {max(self.known['widths'])} wide; expected {hidden}"
            )
        return widths

    def _fitted(self, per_layer: Costs, student: nn.Module) -> Costs:
        """Scale what the layers cost alone, and add a rest that grows with the hidden width, to fit two measurements.

        They are the whole student and the smallest one. Layers that are timed alone can be slower than in a student,
        whose last layer computes two tokens only, or faster, since nothing else is in the cache.
        """
        models = [(student, self.cost(student)), self.least(student)]
        shapes = [shape_of(model) for model, _ in models]
        # relative errors count: a row of (layers alone, hidden width) / cost
        rows = [[per_layer.of(*shape) / cost, shape[0] / cost] for shape, (_, cost) in zip(shapes, models, strict=True)]
        (scale, slope), _ = nnls(np.array(rows), np.ones(len(rows)))
        return Costs(
            {h: slope * h for h in per_layer.rest},
            {h: scale * values for h, values in per_layer.heads.items()},
            {h: scale * values for h, values in per_layer.neurons.items()},
        )

    def _measure(self, model: nn.Module) -> float:
        path, whole = self.scratch / "measured.int8.onnx", self.scratch / "measured.onnx"
        self._write(model, whole, path)
        try:
            if self.target.kind == "size_mb":
                return path.stat().st_size / 1e6
            timed = {"student": Timed(path, self._texts(self.tokenizer), self.tokenizer.pad_id)}
            if self._is_ratio:
                timed["teacher"] = self._teacher()
            rounds = self.run.recipe.evaluate.latency_rounds
            found = measure_latency(timed, rounds, _QUIET, sizes=(1,), threads=self.target.threads)
            if not self._is_ratio:
                return found["student"][1].median_ms  # what the report compares with the target
            own = found["student"][1].fastest_ms
            # the teacher's time beside this student's: a machine that is slower now is so for both
            of_teacher = found["teacher"][1].fastest_ms
            if "teacher_ms" not in self.known:
                self._remember("teacher_ms", of_teacher)
            return float(self.known["teacher_ms"]) * own / of_teacher
        finally:
            path.unlink(missing_ok=True)
            whole.unlink(missing_ok=True)

    def _write(self, model: nn.Module, whole: Path, path: Path) -> None:
        recipe = self.run.recipe
        graph = Graph(export_model(model, self.run.spec.exporter_task, recipe.export.opset, self.scratch))
        optimize(graph, model)
        onnx.save(graph.finish(), whole)
        examples = self.run.splits.train[:_CALIBRATION_TEXTS]
        texts = self.tokenizer.encode([example.input for example in examples])
        method, pad_id = recipe.quantize.candidates[0], self.tokenizer.pad_id
        make = quantizer(method, recipe.quantize, whole, texts, pad_id, _QUIET, self.scratch)
        onnx.save(make(onnx.load(whole), frozenset()), path)

    def _texts(self, tokenizer: Tokenizer) -> list[Encoding]:
        if self.target.kind == "latency_ms":
            return same_length(tokenizer, self.target.tokens)
        recipe, validation = self.run.recipe, self.run.splits.validation
        number = min(_TIMED_TEXTS, recipe.evaluate.latency_texts)
        chosen = np.random.default_rng(recipe.seed).permutation(len(validation))[:number]
        return tokenizer.encode([validation[index].input for index in chosen])

    def _teacher(self) -> Timed:
        run, path = self.run, self.scratch / _TEACHER
        source = run.folder("teacher")
        if not path.is_file():
            labels, seed = run.splits.labels, run.recipe.seed
            model = load_classifier(str(source / teacher.MODEL), labels, seed, run.spec, keep_head=True)
            half = path.with_suffix(".half")
            onnx.save(export_model(model, run.spec.exporter_task, run.recipe.export.opset, self.scratch), half)
            half.replace(path)
        tokenizer = Tokenizer(source / teacher.TOKENIZER, run.recipe.data.max_length)
        return Timed(path, self._texts(tokenizer), tokenizer.pad_id)

    def _remember(self, name: str, value: Any) -> None:
        self.known[name] = value
        write_atomic(self.scratch / COSTS, json.dumps(self.known))


def _differences(found: Any, expected: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the two say of the keys in which they differ."""
    known = found if isinstance(found, dict) else {}
    keys = [key for key in {**expected, **known} if known.get(key) != expected.get(key)]
    return {key: known.get(key) for key in keys}, {key: expected.get(key) for key in keys}


def same_length(tokenizer: Tokenizer, tokens: int) -> list[Encoding]:
    """Return texts of `tokens` random tokens each, drawn with a fixed seed."""
    ids = sorted(tokenizer.vocabulary().values())
    drawn = np.random.default_rng(0).choice(ids, (_SAME_LENGTH_CALLS, tokens)).tolist()
    return [Encoding(row, [0] * tokens, truncated=False) for row in drawn]


def shape_key(model: nn.Module) -> str:
    """Return what tells models of one run apart that cost differently, such as `312: 4x512 3x256`."""
    hidden, layers = shape_of(model)
    return f"{hidden}: " + " ".join(f"{heads}x{neurons}" for heads, neurons in layers)


def shape_of(model: nn.Module) -> tuple[int, list[tuple[int, int]]]:
    """Return the hidden width, and the heads and neurons of each layer."""
    anatomy = anatomy_of(model)
    return anatomy.hidden, [(layer.heads, layer.neurons) for layer in anatomy.layers]


def hidden_widths(hidden: int, block: int) -> list[int]:
    """Return the widths that hidden states may have: some shares of `hidden`, in steps that kernels like.

    Narrower ones, of which a matrix with `block` neurons would be too small for INT8, are left out.
    """
    step = 32 if hidden >= 256 else 8
    narrower = {round(hidden * share / step) * step for share in _HIDDEN_SHARES}
    return sorted({hidden, *(width for width in narrower if width * block >= MIN_MATRIX_ELEMENTS)})
