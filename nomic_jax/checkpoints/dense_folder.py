"""A projection on the disk: the folder that sentence-transformers has for `Dense`.

config.json          in_features, out_features, bias, activation_function
model.safetensors    linear.weight [E, D], linear.bias [E]
"""

from pathlib import Path

import numpy as np

from nomic_jax.checkpoints.json_files import read_json
from nomic_jax.checkpoints.problems import CheckpointError
from nomic_jax.checkpoints.tensor_files import open_tensors, write_tensors
from nomic_jax.model.projection import Projection, ProjectionActivation
from nomic_jax.storage import write_json

PROJECTION_FOLDER = "projection"  # in every layout but that of sentence-transformers
_ACTIVATIONS: dict[str, ProjectionActivation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
}
_KEYS = {"in_features", "out_features", "bias", "activation_function"}
# Keys that later releases write, and the values that change nothing.
_HARMLESS = {
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding", None),
    "use_residual": (False,),
}


def read_dense(folder: Path, width: int) -> Projection:
    """Read a projection of vectors of a width.

    Raises:
        CheckpointError: it is another kind of layer, or its tensors are not whole.
    """
    values = read_json(folder / "config.json", module=f"module {folder.name}")
    tensors, problems = open_tensors(folder)
    wrong = [str(problem) for problem in problems]
    wrong += [
        f"{key}={value!r} is not implemented"
        for key, value in values.items()
        if key not in _KEYS and value not in _HARMLESS.get(key, ())
    ]
    wrong += [f"{key} is missing" for key in sorted(_KEYS - values.keys())]
    activation = str(values.get("activation_function"))
    if activation not in _ACTIVATIONS:
        known = " or ".join(_ACTIVATIONS)
        wrong.append(f"activation_function={activation!r} must be {known}")
    outputs, bias = values.get("out_features"), bool(values.get("bias"))
    if values.get("in_features") != width:
        wrong.append(
            f"in_features={values.get('in_features')} must be the pooled width {width}"
        )
    shapes = {"linear.weight": (outputs, width)}
    shapes |= {"linear.bias": (outputs,)} if bias else {}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        wrong.append(f"its tensors are {found}, and {shapes} are needed")
    if wrong:
        raise CheckpointError(f"{folder} is no projection: {'; '.join(wrong)}")
    arrays = {name: np.asarray(t.read(), np.float32) for name, t in tensors.items()}
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise CheckpointError(f"{folder} has values that are not finite in {bad}")
    return Projection(
        arrays["linear.weight"].T,
        arrays.get("linear.bias"),
        activation=_ACTIVATIONS[activation],
    )


def write_dense(folder: Path, projection: Projection) -> None:
    """Write a projection into a new folder, in float32."""
    folder.mkdir()
    kernel = np.asarray(projection.kernel[...])
    arrays = {"linear.weight": np.ascontiguousarray(kernel.T)}
    if projection.bias is not None:
        arrays["linear.bias"] = np.asarray(projection.bias[...])
    names = {activation: name for name, activation in _ACTIVATIONS.items()}
    write_json(
        folder / "config.json",
        {
            "in_features": kernel.shape[0],
            "out_features": kernel.shape[1],
            "bias": projection.bias is not None,
            "activation_function": names[projection.activation],
        },
    )
    write_tensors(
        folder / "model.safetensors",
        {name: (array.shape, array.dtype) for name, array in arrays.items()},
        arrays.items(),
    )
