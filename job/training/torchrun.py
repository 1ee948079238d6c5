"""torchrun, ended by the kernel when whoever started it is gone: python -m job.training.torchrun OPTIONS"""

from torch.distributed.run import main

from job.interrupt import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    main()
