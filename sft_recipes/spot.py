"""A spot machine's warning: its cloud announces that it takes the machine away at an address that only the machine itself can ask.

On only where `SFT_RECIPES_SPOT` names the cloud, as nothing here touches the network unasked. What is asked, and what it answers:
AWS, "Spot Instance interruption notices" and "Use IMDSv2"; Google Cloud, "Create and use Spot VMs: detect preemption"; Azure, "Scheduled
Events". AWS tells two minutes ahead, the others half a minute.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from .recipe import RecipeError, unknown_name
from .stopping import Stop

ASKED = "SFT_RECIPES_SPOT"
PAUSE = 5.0  # seconds between two questions: what AWS recommends
WAIT = 5.0  # seconds for an answer
MOST = 2**16  # bytes of one
ADDRESSES = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal", "azure": "http://169.254.169.254"}
AZURE_PAUSES = "Freeze"  # of a few seconds, memory kept: the one event that a machine survives as it is

_direct = build_opener(ProxyHandler({}))  # a proxy would be asked about itself


@contextmanager
def watched(stop: Stop, pause: float = PAUSE, address: str = "") -> Iterator[None]:
    """Within the block the cloud that the environment names is asked whether it takes this machine away; `stop` is then told, once.

    Args:
        stop: of the run.
        pause: seconds between two questions.
        address: in place of the cloud's own.

    Raises:
        RecipeError: the environment names a cloud that is not known here.
    """
    cloud = os.environ.get(ASKED, "")
    if not cloud:
        yield
        return
    if cloud not in CLOUDS:
        raise RecipeError(f"{ASKED}: {unknown_name('cloud', cloud, CLOUDS)} Known: {', '.join(CLOUDS)}")
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(stop, cloud, address or ADDRESSES[cloud], pause, ended), daemon=True, name="spot")
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _watch(stop: Stop, cloud: str, address: str, pause: float, ended: threading.Event) -> None:
    """Ask until the machine is to go, or the run has ended; an address that does not answer is told once, and asked again."""
    told = False
    while not ended.is_set():
        try:
            notice = CLOUDS[cloud](address)
        except (OSError, ValueError, LookupError) as error:  # no network, no such address, an answer of another form
            notice = ""
            if not told:
                print(f"warning: {ASKED}={cloud}: {address} does not say whether this machine stays: {error}", file=sys.stderr)
            told = True
        if notice and not ended.is_set():
            print(f"{cloud} takes this machine away: {notice}", file=sys.stderr)
            stop.warned(f"a notice of {cloud}")
            return
        ended.wait(pause)


def _said(url: str, headers: dict[str, str], method: str = "GET") -> str:
    """The answer of a metadata address; empty where there is nothing under it.

    Raises:
        OSError: no answer, or a refusal.
    """
    try:
        with _direct.open(Request(url, headers=headers, method=method), timeout=WAIT) as answer:
            text: str = answer.read(MOST).decode("utf-8", "replace").strip()
            return text
    except HTTPError as error:
        if error.code == 404:
            return ""
        raise


def aws(address: str) -> str:
    """The action and its time, `{"action": "terminate", "time": "..."}`; there is none before a notice."""
    token = _said(f"{address}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    return _said(f"{address}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})


def gcp(address: str) -> str:
    """Whether it is preempted: `TRUE` or `FALSE`."""
    said = _said(f"{address}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return "preempted" if said == "TRUE" else ""


def azure(address: str) -> str:
    """What this machine will not survive (`Preempt`, `Terminate`, `Reboot`, `Redeploy`); it is told of the others of a scale set."""
    header = {"Metadata": "true"}
    events = json.loads(_said(f"{address}/metadata/scheduledevents?api-version=2020-07-01", header))["Events"]
    if not (events := [event for event in events if event["EventType"] != AZURE_PAUSES]):
        return ""
    own = _said(f"{address}/metadata/instance/compute/name?api-version=2021-02-01&format=text", header)
    mine = [event for event in events if own in event["Resources"]]
    return ", ".join(f"{event['EventType']} {event.get('NotBefore', '')}".strip() for event in mine)


CLOUDS: dict[str, Callable[[str], str]] = {"aws": aws, "gcp": gcp, "azure": azure}
