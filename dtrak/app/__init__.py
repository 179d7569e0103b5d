"""What the pages stand on: the service, jobs, view models, figures, widgets and exports."""
