"""`rtdmd upload`: send results/publish to the Hub. Without `--yes` (or publish.dry_run: false) it only shows what it
would send, and sends nothing.

The files go to a branch, are downloaded again and compared by SHA-256, and only then reach `main` and get a tag with
the hash of their lineage in dvc.lock. Run again after an interruption: it goes on where it stopped; when all is there,
it sends nothing. The token is the usual one (`hf auth login`, or HF_TOKEN); it is never printed
(docs/publishing.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether, and how far. Where to is publish.repo_id, which the model card names."""
    parser.add_argument("--yes", action="store_true", help="send, whatever publish.dry_run says")
    parser.add_argument(
        "--review",
        action="store_true",
        help="stop at the verified branch; the same command without it continues to main",
    )
    parser.add_argument(
        "--gate",
        action="store_true",
        help="download the branch and run the gate of stage publish on it before main changes",
    )
    parser.add_argument(
        "--allow-dirty",
        action="store_true",
        help="publish although the commit or dvc.lock does not hold what is here; the card then says so",
    )


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Show the plan and, when asked to, send it. UserError for what must be mended first."""
    from rtdmd.config import load_params
    from rtdmd.publish.upload import Uploader
    from rtdmd.publish.upload_plan import make_publication, plan_text

    params = load_params(root / "params.yaml")
    settings = params.publish
    publication = make_publication(root, settings.repo_id, settings.private, arguments.allow_dirty)
    print(plan_text(publication), flush=True)
    if settings.dry_run and not arguments.yes:
        print("nothing was sent (publish.dry_run: true); `rtdmd upload --yes` sends it")
        return
    gate = None
    if arguments.gate:
        from rtdmd.publish.export import gate_folder  # it needs torch and the base model, a plain upload neither

        def gate(folder: Path) -> None:
            gate_folder(folder, params, root, publication.repo_id)

    print(Uploader(publication).run(review=arguments.review, gate=gate))
