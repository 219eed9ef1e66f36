//! Names of services and pods; a question is answered from the informers' indexes.
