"""Everything that a run imports, for the process that others are forked from.

The command imports its parts when it is asked for them, so each is named here: a fork that imports torch takes seconds.
What waits for a thread that an import has started may not be here, because a fork has none of them.
"""

import accelerate.state  # noqa: F401
import optimum.exporters.onnx  # noqa: F401
import sklearn.linear_model  # noqa: F401
import transformers.models.bert.modeling_bert  # noqa: F401

import bulk.run  # noqa: F401
import compress.pack
import compress.pipeline  # noqa: F401
import limbeck  # noqa: F401
import loadtest.run  # noqa: F401
