"""The entry point of a submission, shipped unchanged as submission.py beside the files of its networks.

It needs torch (2.2 or later). Weights that are missing or do not fit raise an error; random weights are never used.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

MANIFEST = "manifest.json"


def _folder() -> Path:
    """Return the folder of the submission's files."""
    here = globals().get("__file__")
    places = [Path(here).resolve().parent] if here else []
    places += [Path("/app/input/res"), Path("/app/input"), Path.cwd()]
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    raise FileNotFoundError(f"{MANIFEST} is in none of: " + ", ".join(map(str, places)))


class Submission:
    """Create the models; the challenge's scorer makes one instance and asks it for a model of each challenge.

    Parameters
    ----------
    SFREQ
        Sampling rate of the windows in Hz; must be the rate that the models were trained at.
    DEVICE
        Device that the models will run on.

    Raises
    ------
    FileNotFoundError
        The manifest is in none of the folders where the scorer may have put it.
    """

    def __init__(self, SFREQ: float, DEVICE: Any) -> None:
        self.sfreq = float(SFREQ)
        self.device = DEVICE
        self.folder = _folder()

    def get_model_challenge_1(self) -> torch.nn.Module:
        """Return the model of challenge 1: (B, channels, samples) to (B, 1)."""
        return self._model("1")

    def get_model_challenge_2(self) -> torch.nn.Module:
        """Return the model of challenge 2: (B, channels, samples) to (B, 1)."""
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
