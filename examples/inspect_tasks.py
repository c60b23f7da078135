"""Two tasks of Inspect: a question with a known answer, and one whose answer only a tool gives.

With DISTAFF_BASE_URL=http://127.0.0.1:8000/v1 and DISTAFF_API_KEY=- in the environment, run them with
`inspect eval inspect_tasks.py --model openai-api/distaff/tgi`.
"""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool

CONFIG = GenerateConfig(temperature=0, max_tokens=100)


@tool
def staple() -> Tool:
    async def execute(fibre: str) -> str:
        """Returns the length of a fibre's staple.

        Args:
            fibre: wool, flax or cotton.
        """
        return {"wool": "10 cm", "flax": "70 cm", "cotton": "3 cm"}[fibre]

    return execute


@task
def capital() -> Task:
    question = Sample(input="What is the capital of France?", target="Paris")
    return Task(dataset=[question], solver=generate(), scorer=includes(), config=CONFIG)


@task
def staples() -> Task:
    question = Sample(input="How long is the staple of flax?", target="70 cm")
    return Task(
        dataset=[question], solver=[use_tools(staple()), generate()], scorer=includes(), config=CONFIG
    )
