"""What a model would need and do on devices that are not here: the figures behind `distaff plan`.

chips.parse_topology -> Topology            what the devices are
sizing.Sizing        -> Memory              what fits, by the engine's own rules
work.CostModel         -> Work                what a step has to move and to compute, counted from shapes
roofline.step_time   -> StepTime            how long that takes at best
program.ProgramBuilder     -> Program             what JAX and XLA make of the real step for those devices
planning.make_plan   -> report.Plan         all of it together, JAX-free once it is made
"""
