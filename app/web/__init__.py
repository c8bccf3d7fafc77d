"""What all pages share: templates, errors, security."""
