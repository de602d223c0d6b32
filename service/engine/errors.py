"""What can fail inside the engine.

EngineError
├── SessionError        ONNX Runtime cannot load a model, or a call failed inside it
└── TokenizerLoadError  `tokenizer.json` cannot be used
"""


class EngineError(Exception):
    """The engine cannot do what was asked; the message names the file and the reason."""


class SessionError(EngineError):
    """ONNX Runtime cannot load a model, or a call failed inside it."""


class TokenizerLoadError(EngineError):
    """`tokenizer.json` cannot be used."""
