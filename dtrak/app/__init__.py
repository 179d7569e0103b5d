"""The app's logic below its pages: service, jobs, view models, figures, widgets and exports."""
