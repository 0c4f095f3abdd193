"""The public names of attnviz: one line each, for type checkers and for the import itself."""

from attnviz.attribution import attribute as attribute
from attnviz.capture import Capture as Capture
from attnviz.capture import Record as Record
from attnviz.capture import stream as stream
from attnviz.capture import watch as watch
from attnviz.comparison import compare as compare
from attnviz.diagnosis import diagnose as diagnose
from attnviz.errors import AttnvizError as AttnvizError
from attnviz.errors import InputError as InputError
from attnviz.errors import NothingSeenError as NothingSeenError
from attnviz.errors import RunError as RunError
from attnviz.errors import UnsupportedError as UnsupportedError
from attnviz.evaluation import Evaluation as Evaluation
from attnviz.evaluation import evaluate as evaluate
from attnviz.faithfulness import faithfulness_scores as faithfulness_scores
from attnviz.faithfulness import knockout as knockout
from attnviz.faithfulness import randomisation as randomisation
from attnviz.maps import attention_gradcam as attention_gradcam
from attnviz.maps import channel_gated as channel_gated
from attnviz.maps import class_row as class_row
from attnviz.maps import gate_map as gate_map
from attnviz.maps import gradient_weighted as gradient_weighted
from attnviz.maps import head_max as head_max
from attnviz.maps import head_mean as head_mean
from attnviz.maps import maps_of as maps_of
from attnviz.maps import query_row as query_row
from attnviz.maps import received as received
from attnviz.maps import rollout as rollout
from attnviz.maps import rows_inside as rows_inside
from attnviz.metrics import agreement as agreement
from attnviz.metrics import baselines as baselines
from attnviz.metrics import calibrate_threshold as calibrate_threshold
from attnviz.metrics import localization as localization
from attnviz.models import build_model as build_model
from attnviz.patches import inject_patch as inject_patch
from attnviz.runs import list_runs as list_runs
from attnviz.runs import open_run as open_run
from attnviz.runs import save_run as save_run

__version__: str
