"""The losses of others beside CTC on transcripts, three seeds, each with its own teacher.

Two views of each row, a head in the middle, and the student's own past, against CTC alone and
symmetric selection beside it. In the folder of `evidence` both share teachers and runs.
    jaxkd grid losses --recipe=digits --folder=runs/evidence-digits --config.data.root=FOLDER
"""


def get_grid(recipe: str) -> dict:
  del recipe
  masked = "ctc-spec_augmentTrue-train"
  symmetric = "symmetric-n2-scale0.25-train"
  return dict(
    scales=(0.25,),
    seeds=(0, 1, 2),
    teachers="each",
    variants=(
      ("ctc", {}),
      # The views differ by masks, which recipes of little audio leave out elsewhere.
      ("ctc", {"training.spec_augment": (True,)}),
      ("consistency", {}),
      ("self_distillation", {"kd.scale": (0.5,)}),
      ("symmetric", {"kd.selection.n": (2,)}),
      ("intermediate", {}),
    ),
    claims=[
      _claim("two views beat CTC alone", "consistency-train", "ctc-train"),
      _claim("two views beat one with masks", "consistency-train", masked),
      _claim("the student's own past beats CTC alone", "self_distillation-*", "ctc-train"),
      _claim("a teacher's frames beside CTC beat CTC alone", symmetric, "ctc-train"),
      _claim("a head in the middle beats the last one alone", "intermediate-*", symmetric),
    ],
  )


def _claim(text: str, a: str, b: str) -> dict:
  return dict(text=text, a=a, b=b, expect="lower")
