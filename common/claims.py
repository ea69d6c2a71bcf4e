"""What the claims.py of all milestones share: arms that are skipped when done, and their summary.

for arm, flags in ARMS.items():
    for seed in args.seeds:
        argv = [*flags, "--seed", str(seed)]
        folder = arm_folder("lenet", arm, argv)
        results[arm].append(finished(folder) or main([*argv, "--run-dir", str(folder), "--resume"]))
write_summary(args.out / "claim_data.json", results, commands)
"""

import json
import statistics
from pathlib import Path

from common import seed_of


def arm_folder(milestone: str, arm: str, argv: list[str]) -> Path:
    """Where one arm with these flags runs: the same flags, the same folder."""
    return Path("runs", f"{milestone}-claims", f"{arm}-{seed_of(*argv) % 16**6:06x}")


def finished(folder: Path) -> dict[str, float] | None:
    """The final metrics of a run that has ended, or None."""
    path = folder / "metrics.jsonl"
    last = path.read_text().splitlines()[-1:] if path.exists() else []
    row = json.loads(last[0]) if last and last[0].endswith("}") else {}
    return {k: v for k, v in row.items() if "_" in k} if row.get("final") else None


def write_summary(path: Path, results: dict[str, list[dict]], commands: dict[str, str]) -> dict:
    """Writes for each arm its command, and mean, standard deviation and values of each metric."""
    summary = {}
    for arm, runs in results.items():
        metrics = {}
        for key in runs[0]:
            values = [run[key] for run in runs]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            metrics[key] = {"mean": statistics.mean(values), "std": deviation, "values": values}
        summary[arm] = {"command": commands[arm], **metrics}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1) + "\n")
    return summary
