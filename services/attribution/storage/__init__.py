"""Every query on the attribution schema, a file per family of tables."""

from types import MappingProxyType

PLANNER = MappingProxyType({"enable_seqscan": "off"})
"""For the connections: all is read by an index. Else, of a month that is young, the planner reads the little there is,
and then has to sort: so it would read all that lies behind an address, of the old months too."""
