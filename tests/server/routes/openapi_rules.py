"""What schemathesis cannot know: the rules that JSON Schema does not state. Loaded by its command line.

A request that keeps the schema may still be refused, with 400 or TGI's 422, for one of these reasons alone.
"""

import re

import schemathesis

RULES = {
    "prompt and completion exceed the context together": (
        r"context length is|prompt is too long|`inputs` tokens \+ `max_new_tokens` must be <="
    ),
    "an answer of a tool stands behind no call": (
        r"must be a response to a preceeding message|No tool call found|No 'tool_use' block before it"
        r"|'tool_use' blocks without a 'tool_result'"
    ),
    "a tool is chosen, and there is none": r"is only allowed when 'tools' are specified|not found in 'tools'",
    "one parameter needs or excludes another": (
        r"is only allowed when '(logprobs|stream)' is enabled"
        r"|'continue_final_message' and 'add_generation_prompt' cannot both be true"
        r"|'best_of': expected at least 'n'|best_of.*(with 'stream'|not supported when streaming)"
        r"|Only one of '.*' can be given"
    ),
    "a string holds no grammar, pattern or schema that can be followed": (
        r"Invalid value for '(guided_|structured_outputs\.)(regex|grammar|choice)'"
        r"|Invalid type for '(guided_json|json_schema|structured_outputs\.json)': "
        r"expected an object, but got a string"
        r"|Invalid (schema|value) for (response_format|'(guided_json|json_schema|structured_outputs\.json)'"
        r"|'(tools|grammar|response_format|text\.format)')"
    ),
    "prompts and choices are more than the queue holds": r"sequences at once \(prompts x choices\)",
    "a grammar of a free-form tool cannot be followed": r"Invalid grammar for tool",
    "a response that is continued is not stored": r"Previous response with id '.*' not found",
    "a tool is demanded that nobody can run": r"Tools of the type '.*' cannot be run here",
    "a page begins after an object that is not there": r"Invalid 'after': no object has the id",
    "an upload is no file": r"Invalid 'file': expected a file with a name",
    "a key of logit_bias is beyond the vocabulary": r"Invalid 'logit_bias': no token has the id",
}
_ALLOWED = re.compile("|".join(RULES.values()))


@schemathesis.hook
def filter_failure(context, failure, case, response) -> bool:
    """Whether a failure counts: overload does not, nor does a refusal by one of the rules."""
    if response.status_code in (503, 529) and "retry-after" in response.headers:
        return False
    refused = type(failure).__name__ == "RejectedPositiveData" and response.status_code in (400, 422)
    return not (refused and _ALLOWED.search(response.text))
