"""Whole tasks of modules of one's own, to run and to copy: `task=Custom("toolkit.examples.two_tower:TwoTower")`."""
