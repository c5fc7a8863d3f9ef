"""Where a prompt puts the video: what can be checked of its words before any tokenizer is opened."""

from featurecache.errors import SettingsError

VIDEO_PLACEHOLDER = "<video>"


def text_after_video(prompt: str) -> str:
    """What a prompt puts after the video; empty where nothing."""
    return prompt.partition(VIDEO_PLACEHOLDER)[2].strip()


def require_one_video(prompt: str, name: str) -> None:
    """Refuses a prompt without the video, or with several.

    Raises:
        SettingsError: Naming the prompt.
    """
    if prompt.count(VIDEO_PLACEHOLDER) != 1:
        raise SettingsError(
            f"{name} must hold {VIDEO_PLACEHOLDER} exactly once, "
            f"but it holds it {prompt.count(VIDEO_PLACEHOLDER)} times. Write the words first, then {VIDEO_PLACEHOLDER}."
        )
