"""Events delivered to observers, never at the expense of tasks."""
