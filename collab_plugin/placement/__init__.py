"""Where the tensors of an artifact live at run time: the placement document, and policies that choose."""
