"""The one error tree of the project.

::

    PutsError                     everything we raise on purpose; one clear line each
    ├── SurfaceError              a control-surface file that describes an impossible surface
    ├── SurfaceMismatchError      two parts (log, run, model, frontier) made for different surfaces
    ├── StateError                one request state that cannot be encoded
    │   ├── StateIncompleteError  ... because something is missing
    │   └── StateInvalidError     ... because something is of the wrong kind, size or value
    ├── ScalarizationError        λ that is not on the (unnormalised) simplex
    ├── LogError                  logs (exploration, decisions, events) that cannot be used
    ├── RunError                  a training run that is missing, damaged or cannot be continued
    ├── FrontierError             a frontier file that is missing, damaged or empty
    ├── RepositoryError           a Triton model repository that is missing or malformed
    │   └── ParityError           an exported model that does not equal the network it came from
    ├── ServerError               the embedded tritonserver: not installed, unusable, did not start
    ├── ConfigurationError        settings that do not fit together
    ├── PolicyError               an operating policy that is impossible, or not on the reviewed frontier
    │   ├── PolicyConflictError   ... because somebody else has changed it meanwhile
    │   └── PolicyNotFoundError   ... because there is none of that number, or none before it
    ├── StoreError                the policy store does not answer
    ├── AccessError               nobody who may ask: no token, or one that is not known
    │   └── ForbiddenError        ... because the token's role does not reach so far
    ├── SimulationError           a simulated feed that was asked for the impossible
    ├── BenchmarkError            a benchmark that failed or could not be run
    ├── RequestError              a request to the sidecar that cannot be served as it is (422)
    │   ├── RequestMalformedError ... because it is not the JSON that was asked for (400)
    │   ├── RequestTooLargeError  ... because it is over a stated limit (413)
    │   └── RequestTooSlowError   ... because its body did not arrive in time (408)
    └── UpstreamError             a call to somebody else's server that failed
        ├── UpstreamUnavailableError   nobody answers
        └── UpstreamInvalidError       the answer is not what the contract says
            └── UpstreamRefusedError   ... but that the request is wrong

Every class takes one message and nothing else, so each survives the pickling that happens when an
exception crosses an actor. Messages say what failed, what was expected, what came, what to do.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What somebody else's error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


class PutsError(Exception):
    """Base of everything this project raises on purpose; the message is one line for a person."""


class SurfaceError(PutsError):
    """A control-surface file that describes an impossible surface."""


class SurfaceMismatchError(PutsError):
    """Two parts that were made for different control surfaces."""


class StateError(PutsError):
    """One request state that cannot be encoded."""


class StateIncompleteError(StateError):
    """A request state that lacks a field."""


class StateInvalidError(StateError):
    """A request state with a field of the wrong kind, size or value."""


class ScalarizationError(PutsError):
    """A scalarization with a negative, non-finite or all-zero entry, or of the wrong length."""


class LogError(PutsError):
    """Logs of exploration, decisions or events that cannot be used."""


class RunError(PutsError):
    """A training run that is missing, damaged or cannot be continued."""


class FrontierError(PutsError):
    """A frontier file that is missing, damaged or empty."""


class RepositoryError(PutsError):
    """A Triton model repository that is missing or malformed."""


class ParityError(RepositoryError):
    """An exported model whose outputs differ from the torch network it came from."""


class ServerError(PutsError):
    """The embedded tritonserver is not installed, unusable, or did not start."""


class ConfigurationError(PutsError):
    """Settings that do not fit together."""


class PolicyError(PutsError):
    """An operating policy that is impossible, or not on the reviewed frontier."""


class PolicyConflictError(PolicyError):
    """A change of policy that was made for a state of affairs that is no more."""


class PolicyNotFoundError(PolicyError):
    """A policy that there is not."""


class StoreError(PutsError):
    """The policy store cannot be reached, or what it holds cannot be read."""


class AccessError(PutsError):
    """A request without a token, or with one that is not known; HTTP 401."""


class ForbiddenError(AccessError):
    """A request whose token does not allow it; HTTP 403."""


class SimulationError(PutsError):
    """A simulated feed that was asked for the impossible."""


class BenchmarkError(PutsError):
    """A benchmark that failed or could not be run."""


class RequestError(PutsError):
    """A request to the sidecar that cannot be served as it is; HTTP 422."""


class RequestMalformedError(RequestError):
    """A request body that is not JSON, or not a JSON object; HTTP 400."""


class RequestTooLargeError(RequestError):
    """A request over a stated limit; HTTP 413."""


class RequestTooSlowError(RequestError):
    """A request whose body did not arrive in time; HTTP 408."""


class UpstreamError(PutsError):
    """A call to somebody else's server that failed."""


class UpstreamUnavailableError(UpstreamError):
    """Nobody answers at the address, or the answer did not come in time."""


class UpstreamInvalidError(UpstreamError):
    """The answer came and is not what the contract says."""


class UpstreamRefusedError(UpstreamInvalidError):
    """The server answered that the request is wrong: whose fault that is depends on who made the request."""
