"""The entry point of a submission, shipped as it is under the name submission.py beside the files of its networks.

It needs torch (2.2 or later). Weights that are missing or do not fit raise; there are no random ones to fall back on.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

MANIFEST = "manifest.json"


def _folder() -> Path:
    """Where the submission's files are."""
    here = globals().get("__file__")
    places = [Path(here).resolve().parent] if here else []
    places += [Path("/app/input/res"), Path("/app/input"), Path.cwd()]
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    raise FileNotFoundError(f"{MANIFEST} is in none of: " + ", ".join(map(str, places)))


class Submission:
    """What the challenge's scorer makes, once, and asks for a model of each challenge.

    Parameters
    ----------
    SFREQ
        Sampling rate of the windows in Hz; must be the one that the models were trained at.
    DEVICE
        Where the models will run.
    """

    def __init__(self, SFREQ: float, DEVICE: Any) -> None:
        self.sfreq = float(SFREQ)
        self.device = DEVICE
        self.folder = _folder()

    def get_model_challenge_1(self) -> torch.nn.Module:
        """The model of challenge 1: (B, channels, samples) to (B, 1)."""
        return self._model("1")

    def get_model_challenge_2(self) -> torch.nn.Module:
        """The model of challenge 2: (B, channels, samples) to (B, 1)."""
        return self._model("2")

    def _model(self, challenge: str) -> torch.nn.Module:
        manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        if challenge not in manifest["challenges"]:
            raise RuntimeError(f"this submission holds only challenge {', '.join(sorted(manifest['challenges']))}")
        entry = manifest["challenges"][challenge]
        if self.sfreq != entry["spec"]["sfreq"]:
            raise ValueError(f"the model was trained at {entry['spec']['sfreq']} Hz; SFREQ is {self.sfreq}")
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        from ensemble import EnsembleModule, ScorerModule  # type: ignore[import-not-found,unused-ignore]

        tensors = torch.load(self.folder / entry["weights"], map_location="cpu", weights_only=True)
        ensemble = EnsembleModule(entry["spec"])
        ensemble.load_state_dict(tensors)
        model: torch.nn.Module = ScorerModule(ensemble, entry["input_scale"]).eval().requires_grad_(False)
        return model.to(self.device)
