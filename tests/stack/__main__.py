"""Start the stand for a person: ``python -m tests.stack [FOLDER ...]``; Ctrl-C or end of input stops it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from tests.postgres import start_embedded
from tests.stack.stand import DAGS, ROOT, Stand, started


def main() -> None:
    """Start, say where, wait, stop."""
    signal.signal(signal.SIGTERM, _leave)
    folders = [Path(name) for name in sys.argv[1:]] or [ROOT / "dags_examples", DAGS]
    server, stop = start_embedded()
    try:
        with started(server, *folders, say=lambda text: print(f"... {text}", flush=True)) as stand:
            _tell(stand)
            sys.stdin.read()
    except KeyboardInterrupt:
        print("\n... stopping", flush=True)
    finally:
        stop()


def _tell(stand: Stand) -> None:
    print(f"\nAirflow       {stand.base_url}  (no login needed)")
    print(f"DAGs          {stand.home / 'dags'}  (edit, add: loaded after two seconds)")
    print(f"logs          {stand.home}/*.log")
    print("commands      in another terminal, after:")
    for name in ("AIRFLOW_HOME", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__FERNET_KEY"):
        print(f"              export {name}='{stand.environment[name]}'")
    print("              childrun runs list")
    print("\nCtrl-C stops it and removes everything.", flush=True)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
