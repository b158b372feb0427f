"""Convert a released segmentation network: convert_weights.py FILE… OUTPUT --source deeplab_ws."""

import argparse

from projects.semantic_segmentation.semantic_segmentation.convert import SOURCES, convert_files
from wsbcn_d2.errors import UserError, exit_with_message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", help="the file (or encoder and decoder), output")
    parser.add_argument("--source", required=True, choices=SOURCES, help="which release")
    args = parser.parse_args()
    *files, output = args.files
    with exit_with_message("convert_weights.py"):
        try:
            content = convert_files(files, output, args.source)
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from error
    print(f"{output}: {len(content['model'])} tensors, {len(content['norms']['norms'])} norms")


if __name__ == "__main__":
    main()
