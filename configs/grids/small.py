"""The question of the paper in few runs: which frames, with the CTC loss beside them and without.

jaxkd grid small --recipe=demo
"""


def get_grid(recipe: str) -> dict:
  del recipe
  return dict(
    scales=(0.25, 1.0),
    seeds=(0,),
    variants=dict(
      ctc={},
      standard={},
      elimination={},
      symmetric={"kd.selection.n": (1, 2, 3)},
      random={"kd.selection.ratio": (1.0,)},
    ),
  )
