"""Stage publish: a model folder that plain diffusers loads, with its model card. Nothing leaves this machine.

Run `rtdmd publish`: it reads both students' weights and the evaluation and writes results/publish/: the weights as one
LoRA file, as a whole transformer, or both (publish.format), a scheduler that runs the trained levels, README.md (the
model card) with its pictures, provenance.json, and gate.json. The folder must pass the gate (rtdmd/publish/gate.py): a
fresh process with released diffusers runs the card's Python and compares what it loads with the student in memory.
`rtdmd upload` sends the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rtdmd.common.files import read_json, write_atomic, write_json
from rtdmd.evaluate.names import STUDENT, first_suite
from rtdmd.pipeline.declared import check_format
from rtdmd.pipeline.stage import open_stage, resolved
from rtdmd.publish.card import SAMPLES
from rtdmd.publish.export import STUDENTS, WEIGHTS, check_forms, finish, make_weights, student_source
from rtdmd.publish.gate import ExportedWeights, table
from rtdmd.publish.records import PROVENANCE, lineage_record, weights_metadata


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("publish", root) as stage:
        forms = check_forms(stage.params.publish.format, stage.params.adapter.mode)
        check_format(stage.params, stage.entry)
        lineage = {name: read_json(stage.input(f"results/{name}/resolved.json")) for name in STUDENTS}
        judges = ("train_rtdmd", "evaluate")
        identities = {name: read_json(stage.input(f"results/{name}/scorers.json")) for name in judges}
        paths = {name: stage.input(path) for name, path in WEIGHTS.items()}
        metadata = weights_metadata(lineage_record(lineage, {"train_rtdmd": identities["train_rtdmd"]}))
        source = student_source(stage.params, root, paths, forms, metadata)
        exported = make_weights(source, stage.output)
        lineage |= {"evaluate": read_json(stage.input("results/evaluate/resolved.json")), "publish": resolved(stage)}
        metrics = read_json(stage.input("results/evaluate/metrics.json"))
        record = {
            **lineage_record(lineage, identities),
            **export_record(exported, forms, stage.params.model.eta),
        }
        write_json(stage.output(PROVENANCE), record)
        write_atomic(stage.output(SAMPLES), stage.input("results/evaluate/contact_sheet.png").read_bytes())
        card_context = {
            "settings": record["settings"],
            "settings_sha256": record["settings_sha256"],
            "metrics": metrics if STUDENT in first_suite(metrics) else {},  # evaluate.models may leave the student out
            "datasets": stage.params.publish.datasets,
        }
        print(table(finish(source, exported, stage.output, card_context)["forms"]), file=sys.stderr)


def export_record(exported: ExportedWeights, forms: tuple[str, ...], eta: float) -> dict[str, Any]:
    """The weights' forms, and how they are sampled, for provenance.json."""
    adapter = exported.adapter
    return {
        "forms": list(forms),
        "adapter": None
        if adapter is None
        else {"rank": adapter.rank, "alpha": adapter.alpha, "stages": list(STUDENTS)},
        "sampling": {"sigmas": exported.sigmas, "eta": eta},
    }
