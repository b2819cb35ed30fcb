"""Uploads to Hugging Face's hub, by its own client."""

import pathlib
import re

from jaxkd.errors import TryAgain, UserError

# As the hub has it: each part of letters, digits, - _ and ., 96 characters in all.
_NAME = re.compile(r"(?!.{97})\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def check_can_push(name: str) -> None:
  """Raises UserError where `push` would, as far as that is known without the network."""
  if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
    raise UserError(
      f"--push={name}: it must be ORG/NAME, such as my-org/my-model: letters, digits and single "
      "- _ . inside"
    )
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(f"--push={name} needs huggingface-hub: pip install 'jaxkd[hf]'") from error
  if not huggingface_hub.get_token():
    raise UserError(f"--push={name}: not logged in to the Hugging Face hub: {_LOG_IN}")


def push(folder: pathlib.Path, files: list[pathlib.Path], name: str, *, private: bool) -> str:
  """Uploads files of a folder to a model of the hub, which is made if it is not there.

  Args:
    folder: whose files they are.
    files: in it.
    name: ORG/NAME.
    private: nobody else sees a model that is made; one that is there stays as it is.

  Returns:
    Where it is to be seen.

  Raises:
    UserError: the hub cannot be reached, or it does not take them.
  """
  check_can_push(name)
  import huggingface_hub

  api = huggingface_hub.HfApi(library_name="jaxkd")
  try:
    url = api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(
      repo_id=name,
      folder_path=folder,
      allow_patterns=[path.relative_to(folder).as_posix() for path in files],
      commit_message="Upload by jaxkd convert",
    )
  except Exception as error:  # the hub's and the network's many kinds
    answered = getattr(error, "response", None) is not None or isinstance(error, ValueError)
    raise (UserError if answered else TryAgain)(
      f"--push={name}: {_reason(error, api.endpoint)}; {folder} is written"
    ) from error
  return str(url)


def _reason(error: Exception, endpoint: str) -> str:
  """What went wrong, in one line, and what to do about it where that is known."""
  said = " ".join(str(error).split())[:200]
  status = getattr(getattr(error, "response", None), "status_code", None)
  if status == 401:
    return f"the hub does not know this login: {_LOG_IN}"
  if status == 403:
    return f"this login may not write there ({said}): take a token that may, or another ORG"
  if status is not None:
    return f"the hub refuses it: {said}"
  if isinstance(error, ValueError):  # a card that it does not take, above all
    return f"the hub refuses it: {said}"
  return f"{endpoint} cannot be reached ({type(error).__name__}: {said})"
