"""instructor: an answer as a pydantic object, with a tool call and with `response_format`.

Run it with `python examples/instructor_extract.py`; DISTAFF_URL names another server. The format is certain;
the facts are as good as the model.
"""

import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

URL = os.environ.get("DISTAFF_URL", "http://127.0.0.1:8000/v1")


class Yarn(BaseModel):
    """A yarn as it is sold."""

    fibre: Literal["wool", "flax", "cotton"]
    plies: Literal[1, 2, 3, 4]
    dyed: bool


def main() -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(OpenAI(base_url=URL, api_key="-"), mode=mode)
        yarn = client.chat.completions.create(
            model="tgi",
            messages=[{"role": "user", "content": "Describe this: a skein of red wool, two strands plied."}],
            response_model=Yarn,
            max_retries=0,
            temperature=0,
            max_tokens=100,
        )
        assert isinstance(yarn, Yarn)
        print(f"{mode.name.lower()}: {yarn.model_dump()}")


if __name__ == "__main__":
    main()
