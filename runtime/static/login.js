// The login that the pages share: login.html.

const find = (id) => document.getElementById(id);

// entered(token): the server has taken the token; left(): the user has logged out.
export function setUpLogin(entered, left) {
  find("enter").addEventListener("submit", async (event) => {
    event.preventDefault();
    find("wrong").textContent = "";
    const token = find("token").value;
    try {
      const answer = await fetch("v1/login", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ token }),
      });
      if (answer.ok) {
        find("token").value = "";
        find("login").hidden = true;
        entered(token);
        return;
      }
      find("wrong").textContent = answer.status === 401 ? "That is not the token." : `The server says ${answer.status}.`;
    } catch {
      find("wrong").textContent = "The server does not answer.";
    }
    find("token").select();
  });
  find("logout").addEventListener("click", async () => {
    await fetch("v1/logout", { method: "POST" }).catch(() => {});
    left();
  });
}

export function showLogin() {
  find("logout").hidden = true;
  find("login").hidden = false;
  find("token").focus();
}
