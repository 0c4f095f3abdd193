"""The doctor's rules, one subject a file; importing this package registers them all."""

# ruff: noqa: I001 – the order of registration is that of the documentation and of equal severities
from attnviz.diagnosis.rules import inputs as inputs
from attnviz.diagnosis.rules import execution as execution
from attnviz.diagnosis.rules import tokens as tokens
from attnviz.diagnosis.rules import weights as weights
from attnviz.diagnosis.rules import connections as connections
from attnviz.diagnosis.rules import information as information
from attnviz.diagnosis.rules import gates as gates
from attnviz.diagnosis.rules import gate_functions as gate_functions
from attnviz.diagnosis.rules import effects as effects
from attnviz.diagnosis.rules import weight_distribution as weight_distribution
from attnviz.diagnosis.rules import sinks as sinks
from attnviz.diagnosis.rules import localization as localization
from attnviz.diagnosis.rules import training as training
from attnviz.diagnosis.rules import splits as splits
from attnviz.diagnosis.rules import cost as cost
