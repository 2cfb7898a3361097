// The widget manager asks MathJax 2 to typeset each text widget; the pages have MathJax 3, where there is nothing to ask.
window.addEventListener("load", () => {
  if (window.MathJax && !window.MathJax.Hub) {
    window.MathJax.Hub = { Queue() {} };
  }
});
