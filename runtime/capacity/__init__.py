"""The memory and speed of a model on devices that need not exist here: the figures of `distaff plan`.

chips.parse_topology -> Topology            the devices
sizing.Sizing        -> Memory              what fits, by the engine's own rules
work.CostModel       -> Work                bytes and operations of a step, counted from shapes
roofline.step_time   -> StepTime            the shortest possible time of a step
program.ProgramBuilder -> Program           the real step, lowered or compiled for those devices
planning.make_plan   -> report.Plan         all of it together, as values without JAX
"""
