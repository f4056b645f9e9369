"""Storage nodes: places for fragment and journal files, behind engine.interfaces.Node."""
