// Shared by all pages: the data, and light or dark mode. Text is inserted by textContent or setAttribute, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function showFacts(facts) {
  for (const [term, value] of facts) {
    const fact = element("div");
    fact.append(element("dt", "", term), element("dd", "", value));
    $("facts").append(fact);
  }
}

// Marks the sides of a scroller that hide content.
function showMore(scroller) {
  const update = () => {
    const hidden = scroller.scrollWidth - scroller.clientWidth - scroller.scrollLeft;
    scroller.classList.toggle("more-left", scroller.scrollLeft > 1);
    scroller.classList.toggle("more-right", hidden > 1);
  };
  scroller.classList.add("more");
  scroller.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(scroller);
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", dark);
}

$("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
prefersDark.addEventListener("change", () => setTheme(prefersDark.matches));
setTheme(prefersDark.matches);

