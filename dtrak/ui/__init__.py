"""What the pages stand on: jobs, runs, services, figures and view models. No Streamlit here."""
