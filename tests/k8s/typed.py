"""Type-checks the rules of a ValidatingAdmissionPolicy (JSON on stdin) with Google's CEL, as the API server does when the policy is
created: `object` is dynamic, each variable has the type of its expression. Prints what is wrong, a line each."""

import json
import sys

from cel_expr_python import cel
from cel_expr_python.ext import ext_strings

policy = json.load(sys.stdin)["spec"]
types = {"object": cel.Type.DYN, "oldObject": cel.Type.DYN}
failed = False


def check(what, expression, wanted=None):
    """The type of an expression, `variables.x` written as a variable of its own."""
    global failed
    env = cel.NewEnv(variables=types, extensions=[ext_strings.ExtStrings(0)])
    try:
        found = env.compile(expression.replace("variables.", "variables_")).return_type()
    except Exception as error:  # whatever the checker says
        print(f"{what}: {error}")
        failed = True
        return cel.Type.DYN
    if wanted is not None and found != wanted:
        print(f"{what}: {found.name()}, not {wanted.name()}")
        failed = True
    return found


for condition in policy["matchConditions"]:
    check(condition["name"], condition["expression"], cel.Type.BOOL)
for variable in policy["variables"]:
    types["variables_" + variable["name"]] = check(variable["name"], variable["expression"])
for rule in policy["validations"]:
    check(rule["message"], rule["expression"], cel.Type.BOOL)
sys.exit(failed)
