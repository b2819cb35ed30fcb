"""The losses of others, beside CTC on transcripts; three seeds, each with its own teacher.

Two views of each row, a head in the middle, and the student's own past, against CTC alone and
symmetric selection beside it. In the folder of `evidence` both share teachers and runs.
    jaxkd grid losses --recipe=digits --folder=runs/evidence-digits --config.data.root=FOLDER
"""


def get_grid(recipe: str) -> dict:
  del recipe
  masked = "ctc-spec_augmentTrue-train"
  beside, alone = "-scale0.25-train", "-scale1.0-unlabelled"
  symmetric = f"symmetric-n2{beside}"
  return dict(
    # At 1, on audio alone: added when the runs beside CTC were known; all frames there, later.
    scales=(0.25, 1.0),
    seeds=(0, 1, 2),
    teachers="each",
    variants=(
      ("ctc", {}),
      # The views differ by masks, which recipes of little audio leave out elsewhere.
      ("ctc", {"training.spec_augment": (True,)}),
      ("consistency", {}),
      ("self_distillation", {"kd.scale": (0.5,)}),
      ("symmetric", {"kd.selection.n": (2,)}),
      ("standard", {"kd.scale": (1.0,)}),
      ("intermediate", {}),
      ("intermediate", {"kd.selection.name": ("all_frames",), "kd.scale": (1.0,)}),
    ),
    claims=[
      _claim("two views beat CTC alone", "consistency-train", "ctc-train"),
      _claim("two views beat one with masks", "consistency-train", masked),
      _claim("the student's own past beats CTC alone", "self_distillation-*", "ctc-train"),
      _claim("a teacher's frames beside CTC beat CTC alone", symmetric, "ctc-train"),
      _claim("a head in the middle beats the last one alone", f"intermediate{beside}", symmetric),
      _claim("it does without transcripts, too", f"intermediate{alone}", f"symmetric-n2{alone}"),
      _claim("it does with all frames", f"intermediate-nameall_frames{alone}", f"standard{alone}"),
    ],
  )


def _claim(text: str, a: str, b: str) -> dict:
  return dict(text=text, a=a, b=b, expect="lower")
