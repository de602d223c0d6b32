"""Infinity loads folders as transformers saves them: lay one around the bundle's files, and become Infinity."""

import json
import os
import tempfile
from pathlib import Path

bundle = Path(os.environ["PEER_BUNDLE"])
manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
variants = {variant["name"]: variant["file"] for variant in manifest["variants"]}
labels = dict(enumerate(manifest["labels"]))
config = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "id2label": labels,
    "label2id": {label: index for index, label in labels.items()},
}
tokenizer = {"tokenizer_class": "BertTokenizerFast", "model_max_length": manifest["max_length"]}

folder = Path(tempfile.mkdtemp())
(folder / "model_quantized.onnx").symlink_to(bundle / variants[os.environ["PEER_VARIANT"]])
(folder / "tokenizer.json").symlink_to(bundle / "tokenizer.json")
(folder / "config.json").write_text(json.dumps(config))
(folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))

command = ["infinity_emb", "v2", "--model-id", ".", "--served-model-name", "classifier", "--engine", "optimum"]
command += ["--device", "cpu", "--host", "127.0.0.1", "--port", os.environ["PEER_PORT"], "--log-level", "warning"]
command += [
    "--batch-size",
    os.environ["PEER_BATCH"],
    "--onnx-disable-optimize",
    "--no-model-warmup",
]  # it warms up with texts too long
os.chdir(folder)  # Infinity hands optimum the file's path, which optimum takes as one within the folder
os.execvp(command[0], command)
