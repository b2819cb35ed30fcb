"""The paper's grid: every pattern with every scale, three seeds, and CTC alone.

n and the other settings are those of TED-LIUM in the paper, and for LibriSpeech its own.
    jaxkd grid paper --recipe=digits --config.data.root=FOLDER
"""


def get_grid(recipe: str) -> dict:
  larger = recipe.startswith("librispeech")
  return dict(
    scales=(0.25, 0.9, 1.0),
    seeds=(0, 1, 2),
    variants=dict(
      ctc={},
      standard={},
      elimination={},
      elimination_prior={},
      trim={},
      symmetric={"kd.selection.n": (1, 2, 3, 4, 5, 6) if larger else (1, 2, 3, 4, 5)},
      threshold={
        "kd.selection.min_label_prob": (0.05, 0.1, 0.2, 0.3) if larger else (0.1, 0.2),
      },
      random={"kd.selection.ratio": (0.25, 0.5, 0.75, 1.0, 2.0) if larger else (0.5, 1.0, 2.0)},
    ),
  )
