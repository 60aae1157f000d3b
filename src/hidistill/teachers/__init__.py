"""Teachers: one file per family of velocity fields, each with the student it gives."""
