"""jaxkd export: a student for other runtimes, checked in them."""

import importlib.util
import pathlib

from rich.table import Table

from jaxkd import buckets, console
from jaxkd.commands import line
from jaxkd.errors import UserError

_EPILOG = """\
onnx       OUT/omnilingual and OUT/zipformer for sherpa-onnx, OUT/onnx-asr and
           OUT/onnx-asr-nemo for onnx-asr: each with model.onnx and its
           classes. Every file is run in its runtime on test data (onnx-asr's
           in onnxruntime where the release does not know it);
           OUT/export.json has the figures.
web        a page that hears in the browser: a folder of static files; with
           --stream it writes what is said while it is said
stablehlo  one file of jax.export, for cpu, cuda and tpu

OUT/zipformer takes students of --config.features.kind=sherpa with 80 mel
filters, OUT/onnx-asr-nemo those of --config.features.kind=nemo. With onnx,
--stream adds OUT/online, for sherpa-onnx's recogniser of streams. Needs
pip install 'jaxkd[export]'.

examples:
  %(prog)s runs/symmetric-demo --int8
  %(prog)s runs/symmetric-demo --data=speech.jsonl --out=phone
  %(prog)s runs/streaming-demo --stream=320ms
  %(prog)s runs/symmetric-demo --to=web --out=page"""
# Where they go, in the workdir.
_TARGETS = {"onnx": "export", "web": "page", "stablehlo": "export"}


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.in_buckets = ("", "--out", "--data")
  parser.epilog = _EPILOG
  add = parser.add_argument
  add("workdir", metavar="WORKDIR", type=line.finished_run, help="of a finished run")
  add("--to", choices=tuple(_TARGETS), default="onnx", help="see below")
  add(
    "--out",
    metavar="DIR",
    help="a folder (default WORKDIR/export, of web WORKDIR/page)",
  )
  add(
    "--runtime",
    metavar="DIR",
    type=pathlib.Path,
    help="web: folder of the npm package onnxruntime-web (default fetched by npm, once)",
  )
  add(
    "--stream",
    metavar="MS",
    type=line.milliseconds,
    help="onnx and web: also streams, in chunks of so many milliseconds, such as 320ms",
  )
  onnx = parser.add_argument_group("onnx")
  onnx.add_argument("--int8", action="store_true", help="also with products of 8 bits")
  onnx.add_argument("--fp16", action="store_true", help="also with 16 bits but for the features")
  onnx.add_argument(
    "--max_wer_loss",
    metavar="POINTS",
    type=line.number(0, 100),
    default="0.5",
    help="a smaller file that loses more is not kept",
  )
  onnx.add_argument(
    "--data",
    metavar="DATA",
    default="",
    help="recordings for the check: a manifest, a folder of audio or corpus:split (default the "
    "run's test data, or else its dev data)",
  )


def run(args) -> int:
  """Exports; returns the exit status, 1 where a file does not say what the student says."""
  if args.stream is not None and args.to == "stablehlo":
    raise UserError("--stream is of --to=onnx and --to=web, and not of --to=stablehlo")
  only_onnx = [name for name in ("int8", "fp16", "data") if getattr(args, name)]
  if only_onnx and args.to != "onnx":
    raise UserError(f"--{only_onnx[0]} is of --to=onnx, and not of --to={args.to}")
  if args.runtime and args.to != "web":
    raise UserError(f"--runtime is of --to=web, and not of --to={args.to}")
  out = buckets.output(args.out or args.workdir / _TARGETS[args.to])
  return {"onnx": _onnx, "web": _web, "stablehlo": _stablehlo}[args.to](args, out)


def _stablehlo(args, out: pathlib.Path) -> int:
  from jaxkd.export import stablehlo
  from jaxkd.inference.finished import FinishedRun

  for path in stablehlo.write(FinishedRun(args.workdir).student, out):
    _say(str(path))
  return 0


def _web(args, out: pathlib.Path) -> int:
  """Writes the page and says how to open it."""
  _need("onnx")
  from jaxkd.export import web
  from jaxkd.inference import live
  from jaxkd.inference.finished import FinishedRun

  student = FinishedRun(args.workdir).student
  chunks = _chunks(student, args)
  written = web.write(student, out, args.runtime, chunks)
  _say(f"{len(written)} files, {sum(path.stat().st_size for path in written) / 1e6:.0f} MB: {out}")
  if chunks is None and live.has_learnt(student):
    _say("the student has learnt to hear chunks: with --stream=320ms the page writes as you speak")
  _say(f"next: cd {out} && python -m http.server    # then open http://localhost:8000")
  return 0


def _need(*packages: str) -> None:
  missing = [name for name in packages if importlib.util.find_spec(name) is None]
  if missing:
    raise UserError(f"this needs {' and '.join(missing)}: pip install 'jaxkd[export]'")


def _onnx(args, out: pathlib.Path) -> int:
  """Writes, checks and shows the folders of the runtimes."""
  _need("onnx", "onnxruntime")
  from jaxkd.export import folder
  from jaxkd.inference.finished import FinishedRun

  found = FinishedRun(args.workdir)
  source = found.open(args.data) if args.data else list(found.splits().values())[-1]
  forms = tuple(form for form in ("int8", "fp16") if getattr(args, form))
  chunks = _chunks(found.student, args)
  wanted = folder.Wanted(forms, args.max_wer_loss, chunks)
  facts = folder.write(found.student, out, source, wanted)
  console.out.print(_table(facts, out))
  for reason in sorted({x["not_run"] for x in facts["files"].values() if "not_run" in x}):
    _say(f"checked in onnxruntime alone: {reason}")
  changed = facts["files"].get("omnilingual/model.onnx", {}).get("changed_by_preparation")
  if changed:
    _say(
      f"omnilingual: sherpa-onnx removes the mean of recordings and levels them, which changes "
      f"{100 * changed:.1f} % of the student's texts, here as well as there"
    )
  if facts["joined_otherwise"]:
    _say(
      f"{facts['joined_otherwise']} of {facts['recordings']} texts are other words than jaxkd "
      "transcribe's: these runtimes write pieces one after another as they are"
    )
  if chunks:
    _say_of_streams(facts["files"]["online/model.onnx"], out)
  kept_not = {name: x["not_kept"] for name, x in facts["files"].items() if "not_kept" in x}
  for name, reason in (facts["left_out"] | kept_not).items():
    _say(f"{name}: {reason}")
  _say(f"figures: {out / folder.FACTS}")
  if any(name.endswith("/model.onnx") for name in kept_not):
    return 1
  _say(f"next: {line.pasted()} transcribe {out} RECORDING.wav")
  return 0


def _chunks(student, args):
  """Chunks of the streams that are asked for; None where none are."""
  from jaxkd.inference import live

  if args.stream is None:
    return None
  chunks = live.chunks(student, args.stream, str(args.workdir))
  if not live.has_learnt(student):
    _say("--stream: the student has not learnt to hear chunks (student.chunk_frames is empty)")
  return chunks


def _say_of_streams(of_file: dict, out: pathlib.Path) -> None:
  """What the table does not say of the place for streams."""
  if of_file["wer_here"] is not None:
    _say(f"online: WER here in chunks {console.percent(of_file['wer_here'])} %")
  if of_file.get("changed_by_preparation"):
    _say(
      f"online: silence behind recordings, with which sherpa-onnx hears their ends, changes "
      f"{100 * of_file['changed_by_preparation']:.1f} % of the texts, here as well as there"
    )
  _say(f"how to use it: {out / 'online' / 'README.md'}")


def _table(facts: dict, out: pathlib.Path) -> Table:
  here = next(of["wer_here"] for name, of in facts["files"].items() if "online/" not in name)
  title = f"{out} · {facts['recordings']} recordings of {facts['data']}"
  if facts["transcribed"]:
    title += f" · WER here {console.percent(here)} %"
  table = Table(title=title, title_justify="left")
  for heading in ("", "MB", "Δ log p", "same %", "WER %", "× real time"):
    table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
  for name, of_file in facts["files"].items():
    name = name.removesuffix(".onnx")
    difference = of_file["largest_difference"]
    size = f"{of_file['bytes'] / 1e6:.1f}"
    difference = "NaN" if difference is None else f"{difference:.0e}"
    rates = (console.percent(of_file[key]) for key in ("same_texts", "wer"))
    speed = "–" if "not_run" in of_file else f"{1 / of_file['real_time_factor']:.0f}"
    table.add_row(name, size, difference, *rates, speed)
  return table


def _say(text: str) -> None:
  console.out.print(text, highlight=False, markup=False, soft_wrap=True)
