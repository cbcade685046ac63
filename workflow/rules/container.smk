"""The image that jobs run in, if the profile says `software-deployment-method: apptainer`."""

from millrace.errors import UserError
from millrace.launch.container import command, image_of, shown


def find_image():
    """The image, and what the launcher puts before commands that run in it; None: jobs run on the host."""
    settings = workflow.deployment_settings
    if not any(one.name == "APPTAINER" for one in settings.deployment_method):
        return None, None
    found = image_of(config)
    if workflow.is_main_process:  # jobs are given what it finds
        settings.apptainer_args = shown(settings.apptainer_args, plan.outside())
    return found, command(found, settings.apptainer_args)


try:
    image, in_image = find_image()
except UserError as error:
    raise WorkflowError(str(error)) from None


container: image


def inside(wildcards):
    """What the launcher of a job needs to start ranks in the image."""
    return in_image
