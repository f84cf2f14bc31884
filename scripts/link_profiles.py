"""Link our profiles to where `snakemake --profile NAME` looks for them (`make profiles`)."""

import sys
from pathlib import Path

PROFILES = Path(__file__).resolve().parents[1] / "profiles"


def find_folder() -> Path:
    """Return the folder in which Snakemake looks for a user's profiles."""
    from snakemake.common import get_appdirs

    return Path(get_appdirs().user_config_dir)


def link_profiles(folder: Path) -> int:
    """Link each profile; what is there already and is not ours is left alone.

    Returns:
        0, or 1 where a name was taken.
    """
    taken = 0
    folder.mkdir(parents=True, exist_ok=True)
    for profile in sorted(
        path for path in PROFILES.iterdir() if (path / "config.yaml").is_file() and path.name != "default"
    ):
        link = folder / profile.name
        if link.is_symlink() and link.resolve() == profile:
            print(f"{link}: linked already")
        elif link.exists() or link.is_symlink():
            print(
                f"{link}: there is another profile of this name; remove it, or use --profile {profile}", file=sys.stderr
            )
            taken = 1
        else:
            link.symlink_to(profile)
            print(f"{link} -> {profile}")
    return taken


if __name__ == "__main__":
    sys.exit(link_profiles(find_folder()))
