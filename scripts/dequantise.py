"""The embedded model as a folder with fp32 safetensors, which vLLM and Transformers read. Needs transformers, torch and gguf.

    .venv-vllm/bin/python scripts/dequantise.py FOLDER

Every number is what the GGUF file's is widened to, so that all that is computed with it in fp32 is the same model.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from polypod.serve.engines.embedded import embedded_weights


def main(folder: Path) -> None:
    """Write the folder, whole or not at all."""
    weights = embedded_weights()
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    place = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    tokeniser = AutoTokenizer.from_pretrained(**place)
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # it is none any more
    config["architectures"] = [type(model).__name__]
    config["torch_dtype"] = "float32"
    (part / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    tokeniser.save_pretrained(part)
    part.rename(folder)
    print(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
